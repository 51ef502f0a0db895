"""Loading: once, in the background, again after a failure; and what a loaded model's numerics ids depend on."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from models.spec.model import ModelSpec
from service.settings import Settings
from service.worker.residency import LoadedModel, Residency, load_model
from service.worker.runner import Runner
from tests.support.rig import denoised, make_request


class Loader:
    """Hands out what it is told, when it is let."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.calls, self.gate = loaded, 0, threading.Event()
        self.error: Exception | None = None

    def __call__(self, spec: ModelSpec) -> LoadedModel:
        self.calls += 1
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return self.loaded


def test_a_model_is_loaded_once_and_in_the_background(loaded: LoadedModel) -> None:
    loader = Loader(loaded)
    residency = Residency({"tiny-xl": loaded.model.spec}, loader)
    first, second = residency.request("tiny-xl"), residency.request("tiny-xl")
    assert not first.done() and residency.resident == ()
    loader.gate.set()
    assert first.result(10) is second.result(10) is loaded
    assert residency.request("tiny-xl").result(10) is loaded
    assert loader.calls == 1 and residency.resident == ("tiny-xl",)
    residency.close()


def test_a_failed_load_is_tried_again(loaded: LoadedModel) -> None:
    loader = Loader(loaded)
    loader.gate.set()
    loader.error = ValueError("weights are missing")
    residency = Residency({"tiny-xl": loaded.model.spec}, loader)
    with pytest.raises(ValueError, match="weights are missing"):
        residency.request("tiny-xl").result(10)
    assert residency.resident == ()
    loader.error = None
    assert residency.request("tiny-xl").result(10) is loaded
    assert residency.resident == ("tiny-xl",)
    residency.close()


def test_an_unknown_model(loaded: LoadedModel) -> None:
    residency = Residency({}, Loader(loaded))
    with pytest.raises(KeyError):
        residency.request("tiny-xl")
    residency.close()


def test_strict_and_fast_rows_are_told_apart(loaded: LoadedModel) -> None:
    assert loaded.strict.id != loaded.fast.id
    assert loaded.numerics(True) is loaded.strict and loaded.numerics(False) is loaded.fast
    assert loaded.strict.padded_lanes == loaded.strict.max_lanes and loaded.strict.lone_decode


def change_json(path: Path, name: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def test_the_id_follows_everything_that_changes_pixels(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "tiny-xl"
    shutil.copytree(loaded.model.spec.folder, folder)
    settings = Settings(backend="torch", threads=1)
    ids = [load_model(ModelSpec.read(folder), settings).strict.id]
    assert ids == [loaded.strict.id], "where the folder lies does not matter"
    (folder / "README.md").write_text("nor what is written about it")
    assert load_model(ModelSpec.read(folder), settings).strict.id == ids[0]
    text = folder / "text_encoder" / "model.safetensors"
    content = bytearray(text.read_bytes())
    content[-2] ^= 1
    text.write_bytes(content)
    ids.append(load_model(ModelSpec.read(folder), settings).strict.id)
    change_json(folder / "scheduler" / "scheduler_config.json", "steps_offset", 0)
    ids.append(load_model(ModelSpec.read(folder), settings).strict.id)
    change_json(folder / "vae" / "config.json", "scaling_factor", 0.2)
    ids.append(load_model(ModelSpec.read(folder), settings).strict.id)
    assert len(set(ids)) == len(ids)


@pytest.mark.timeout(300)  # the export, where the cores are busy
def test_on_onnxruntime_rows_are_their_own_in_any_batch(
    loaded: LoadedModel, sdxl_engines: Path, tmp_path: Path
) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    settings = Settings(data=tmp_path, backend="onnxruntime", threads=1)
    fast = load_model(loaded.model.spec, settings)
    assert fast.strict == fast.fast and fast.strict.padded_lanes == 0 and not fast.strict.lone_decode
    assert fast.strict.id not in (loaded.strict.id, loaded.fast.id)
    assert fast.strict.id == load_model(loaded.model.spec, settings).strict.id

    request = make_request(n=3)
    pictures = [denoised(fast, request, seed) for seed in (7, 8, 9)]
    together = Runner().decode(pictures)
    single = [Runner().decode([picture])[0] for picture in pictures]
    assert all((a == b).all() for a, b in zip(together, single, strict=True))

    # The same picture as on torch, but for rounding.
    reference = Runner().decode([denoised(loaded, request, 7)])[0].astype(int)
    assert abs(together[0] - reference).max() <= 1
    assert abs(together[1] - reference).mean() > 10
