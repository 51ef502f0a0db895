"""A worker's model on OpenVINO: the picture of torch, bytes that are a row's own, an id of its own."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.families import text_to_image
from models.spec.model import ModelSpec
from service.settings import Settings
from service.worker.opening import load_model
from service.worker.picture import Picture
from service.worker.piece import Stage
from service.worker.placement import placement
from service.worker.runner import Runner
from service.worker.upgrades import check_backend
from tests.support.openvino import needs_openvino
from tests.support.rig import denoised, make_request


def settings(folder: Path, backend: str) -> Settings:
    return Settings.model_validate({"data": folder, "backend": backend, "engines": "wait", "threads": 1})


@needs_openvino
@pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes
def test_a_model_on_openvino(sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    spec = ModelSpec.read(sdxl_folder)
    ours, onnxruntime = (load_model(spec, settings(tmp_path, name)) for name in ("openvino", "onnxruntime"))
    on_torch = load_model(spec, settings(tmp_path, "torch"))
    assert ours.strict is ours.fast and ours.strict.padded_lanes == 0, "strict costs nothing"
    assert len({model.strict.id for model in (ours, onnxruntime, on_torch)}) == 3
    assert ours.networks["denoiser"].identity != onnxruntime.networks["denoiser"].identity

    def picture(model: object, prompt: str = "a red cat") -> NDArray[np.int16]:
        assert isinstance(model, text_to_image.TextToImageModel)
        return text_to_image.generate(model, prompt, 7, 2).astype(np.int16)

    expected = picture(on_torch.model)
    assert abs(picture(ours.model) - expected).max() <= 2
    assert abs(picture(ours.model, "a blue dog") - expected).max() > 2
    request, runner = make_request(model=spec.name, deterministic=True), Runner()
    rows = [Picture(request, seed, 0.0, ours, ours.numerics(True)) for seed in (1, 2, 3)]
    runner.encode(rows)
    while rows[0].stage is Stage.DENOISE:
        runner.denoise(rows)
    lonely = denoised(ours, request, 2)
    states = [row.row.state for row in (*rows, lonely) if row.row is not None]
    assert torch.equal(states[1], states[3]) and not torch.equal(states[0], states[3])


def test_a_worker_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("engines.openvino_session.version", version)
    here = settings(tmp_path, "openvino")
    with pytest.raises(ValueError, match=r"backend is 'openvino': OpenVINO is not installed: pip install"):
        check_backend(here, placement(here))
