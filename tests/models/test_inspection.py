"""What files and folders of weights are, found from their headers."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import inspection
from models.checkpoints.single_file import UNET, VAE
from models.checkpoints.tensors import Entry, TensorFile
from models.inspection import inspect
from models.weights import WEIGHTS
from tests.support.adapters import write_kohya
from tests.support.single_files import key_list, write_single_file


class Listed(TensorFile):
    """A file of published keys without their tensors."""

    def read(self, name: str) -> Tensor:
        raise AssertionError("headers are enough")

    def map(self, name: str) -> Tensor:
        raise AssertionError("headers are enough")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Tensor]], Path]:
    """Make a file that says it holds these tensors in half precision."""
    path = tmp_path / "published.safetensors"
    path.touch()

    def make(tensors: dict[str, Tensor]) -> Path:
        entries = {key: Entry(tuple(tensor.shape), "F16") for key, tensor in tensors.items()}
        monkeypatch.setattr(inspection, "open_tensors", lambda _path: Listed(path, entries, {}))
        return path

    return make


def sd1(**changes: Tensor) -> dict[str, Tensor]:
    tower = key_list("clip-l", "cond_stage_model.transformer.")
    return {**key_list("unet-sd1", UNET), **key_list("vae-kl", VAE), **tower, **changes}


def test_a_published_single_file_is_known(listed: Callable[[dict[str, Tensor]], Path]) -> None:
    found = inspect(listed(sd1()))
    assert (found.kind, found.system) == ("single file (sd1)", "stable-diffusion-1.5")
    assert {part.name: part.parameters for part in found.parts} == {
        "unet": 859_520_964,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
    }
    assert {part.dtypes for part in found.parts} == {("F16",)}
    assert (found.missing, found.licence, found.whole) == (("tokenizer",), "creativeml-openrail-m", False)


def test_its_inpainting_variant_is_told_apart_by_a_shape(listed: Callable[[dict[str, Tensor]], Path]) -> None:
    conv_in = f"{UNET}input_blocks.0.0.weight"
    nine = {conv_in: torch.empty(320, 9, 3, 3, device="meta")}
    assert inspect(listed({**sd1(), **nine})).system == "stable-diffusion-1.5-inpainting"
    found = inspect(listed({**sd1(), conv_in: torch.empty(320, 5, 3, 3, device="meta")}))
    assert found.system == "" and not found.whole and found.licence is None
    assert any("shapes differ" in part.fault and conv_in in part.fault for part in found.parts)


def test_a_folder(sdxl_folder: Path, tmp_path: Path) -> None:
    found = inspect(sdxl_folder)
    assert found.whole and found.kind == "StableDiffusionXLPipeline" and found.system == ""
    sizes = {part.name: part.parameters for part in found.parts}
    assert sizes["vae"] == sum(tensor.numel() for tensor in load_file(sdxl_folder / "vae" / WEIGHTS).values())
    assert set(sizes) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    broken = tmp_path / "broken"
    shutil.copytree(sdxl_folder, broken)
    shutil.rmtree(broken / "tokenizer_2")
    (broken / "vae" / WEIGHTS).write_bytes(b"nothing")
    (broken / "unet" / "config.json").write_text(json.dumps({"sample_size": 8, "in_channels": 4, "_class_name": "X"}))
    (broken / "README.md").write_text("---\nlicense: other\nlicense_name: 'my-own'\n---\n# A model\n")
    found = inspect(broken)
    faults = {part.name: part.fault for part in found.parts}
    assert not found.whole and found.missing == ("tokenizer_2",) and found.licence == "my-own"
    assert "is no safetensors file" in faults["vae"] and "class 'X' is not served" in faults["unet"]
    assert not faults["text_encoder"]


ODD = (None, True, -1, 0, 1.5, 10**30, "", "../../etc/passwd", [], [[]], {}, {"a": 1}, [None])


def disturbed(value: Any, draw: random.Random) -> Any:
    """One place of a JSON value taken out, or something else in its stead."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        rest = {name: one for name, one in value.items() if name != key}
        return rest if draw.random() < 0.2 else {**rest, key: disturbed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.6:
        return [disturbed(one, draw) if draw.random() < 1.5 / len(value) else one for one in value]
    return draw.choice(ODD)


@pytest.mark.parametrize(
    "seconds", [2.0, pytest.param(120.0, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])], ids=["2s", "2min"]
)
def test_configs_that_make_no_sense_never_do_more_than_raise_our_error(
    sdxl_folder: Path, tmp_path: Path, seconds: float
) -> None:
    folder = shutil.copytree(sdxl_folder, tmp_path / "odd")
    configs = sorted(path for path in folder.rglob("*.json") if "tokenizer" not in path.parent.name)
    draw, refused, read, end = random.Random(int(seconds)), 0, 0, time.process_time() + seconds
    while time.process_time() < end:
        path = draw.choice(configs)
        content = path.read_text()
        path.write_text(json.dumps(disturbed(json.loads(content), draw)))
        try:
            found = inspect(folder)
            read, refused = read + found.whole, refused + (not found.whole)
        except ValueError as error:
            assert str(folder) in str(error)
            refused += 1
        path.write_text(content)
    assert refused > 5 and read > 5 and inspect(folder).whole


def test_a_folder_around_a_single_file(sdxl_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sdxl_folder, tmp_path / "single", ignore=shutil.ignore_patterns("*.safetensors"))
    write_single_file(sdxl_folder, tmp_path / "single" / "all.safetensors", "sdxl")
    assert inspect(tmp_path / "single").whole


def test_an_adapter(tmp_path: Path) -> None:
    matrices = {"a": (torch.zeros(2, 3), torch.zeros(4, 2)), "b": (torch.zeros(2, 5), torch.zeros(4, 2))}
    found = inspect(write_kohya(tmp_path / "a.safetensors", matrices, "lora_unet_"))
    assert found.kind == "adapter" and found.whole
    assert [(part.name, part.parameters, part.dtypes) for part in found.parts] == [("denoiser", 32, ("F32",))]


def test_anything_else_is_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"keys such as \['fc.weight'\] are of no layout .* and no adapter"):
        inspect(tmp_path / "x.safetensors")
    (tmp_path / "x.bin").touch()
    for name, message in {
        "x.bin": "no model folder and no file of weights",
        "gone.ckpt": "gone.ckpt is missing",
    }.items():
        with pytest.raises(ValueError, match=message):
            inspect(tmp_path / name)
    with pytest.raises(ValueError, match="model_index.json is missing"):
        inspect(tmp_path)
