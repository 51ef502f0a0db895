"""A single file made into a model folder that is served as any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from models import adopt as adopting
from models import inspection
from models.adopt import adopt
from models.checkpoints.systems import System, systems
from models.families import text_to_image
from models.spec.config import read_json
from tests.support.single_files import write_single_file


@pytest.fixture
def file(sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny single file, in a world where its system was published, with a turbo and a larger one."""
    parts = {config.parent.name: read_json(config) for config in sorted(sdxl_folder.glob("*/config.json"))}
    files = {
        str(path.relative_to(sdxl_folder)): read_json(path) for path in sorted(sdxl_folder.glob("**/*config.json"))
    }
    files = {path: content for path, content in files.items() if "tokenizer" not in path}
    files["model_index.json"] = read_json(sdxl_folder / "model_index.json")
    base = System("tiny", "sdxl", "none", files, parts, ("tokenizer", "tokenizer_2"))
    steps = {"scheduler/scheduler_config.json": {**files["scheduler/scheduler_config.json"], "steps_offset": 0}}
    known = {"tiny": base, "tiny-turbo": replace(base, name="tiny-turbo", files={**files, **steps})}
    known["large"] = systems()["sdxl"]
    for module in (inspection, adopting):
        monkeypatch.setattr(module, "systems", lambda: known)
    write_single_file(sdxl_folder, tmp_path / "xl.safetensors", "sdxl")
    return tmp_path / "xl.safetensors"


def test_it_draws_what_the_folder_draws(file: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    assert adopt(file, tmp_path / "xl", sdxl_folder).name == "tiny"
    assert (tmp_path / "xl" / file.name).resolve() == file
    pictures = [
        text_to_image.generate(text_to_image.load(folder), "a cat", 1, steps=2)
        for folder in (tmp_path / "xl", sdxl_folder)
    ]
    assert np.array_equal(*pictures) and pictures[0].std() > 10


def test_another_system_of_the_same_networks_may_be_named(file: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    assert adopt(file, tmp_path / "turbo", sdxl_folder, "tiny-turbo").name == "tiny-turbo"
    scheduler = json.loads((tmp_path / "turbo" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["steps_offset"] == 0
    for name, message in {
        "large": "has other networks than this file, which is 'tiny'",
        "x": "'x' is not known",
    }.items():
        with pytest.raises(ValueError, match=message):
            adopt(file, tmp_path / "other", sdxl_folder, name)


def test_nothing_is_left_of_what_cannot_be_served(file: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no tokenizer"):
        adopt(file, tmp_path / "new", tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there is there already"):
        adopt(file, tmp_path / "there", sdxl_folder)
    state = load_file(file)
    save_file({k: t for k, t in state.items() if not k.startswith("first_stage_model")}, file)
    with pytest.raises(ValueError, match="holds no vae, which tiny needs"):
        adopt(file, tmp_path / "new", sdxl_folder)
    save_file({**state, "first_stage_model.extra": state["first_stage_model.quant_conv.bias"].clone()}, file)
    with pytest.raises(ValueError, match="cannot be served: vae: .*unexpected keys"):
        adopt(file, tmp_path / "new", sdxl_folder)
    assert not (tmp_path / "new").exists()
