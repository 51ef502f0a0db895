"""``darkroom models``."""

from __future__ import annotations

import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.jobs.job import TextToImage
from tests.service.api.conftest import write_model


def test_list(offline: list[TextToImage]) -> None:
    done = CliRunner().invoke(app, ["models", "list"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert all(text in done.output for text in ("tiny", "text-to-image", "64x32"))


def test_check_says_which_are_broken(
    offline: list[TextToImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "zoo" / "torn")
    loaded: list[str] = []

    def load(folder: Path) -> None:
        loaded.append(folder.name)
        if folder.name == "torn":
            raise ValueError("unet: conv_in.weight is missing")

    families = types.ModuleType("models.families")
    families.text_to_image = types.SimpleNamespace(load=load)  # type: ignore[attr-defined]
    families.image_to_video = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models.families", families)
    done = CliRunner().invoke(app, ["models", "check"])
    assert done.exit_code == 1 and loaded == ["tiny", "torn"]
    assert "tiny: whole" in done.output and "torn: unet: conv_in.weight is missing" in done.output
    assert CliRunner().invoke(app, ["models", "check", "tiny"]).exit_code == 0
    done = CliRunner().invoke(app, ["models", "check", "tiny", "huge"])
    assert done.exit_code == 1 and "'huge' is not installed; installed: tiny, torn" in done.output


def test_check_control_a_folder_without_weights(offline: list[TextToImage]) -> None:
    done = CliRunner().invoke(app, ["models", "check"])
    assert done.exit_code == 1 and "tiny: " in done.output and "whole" not in done.output


def test_pull_takes_what_the_loader_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(repository: str, **options: Any) -> None:
        asked.append((repository, options))
        write_model(options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    done = CliRunner().invoke(app, ["models", "pull", "some/tiny-xl", "--into", str(tmp_path), "--revision", "v1"])
    assert done.exit_code == 0 and f"tiny-xl: text-to-image, in {tmp_path / 'tiny-xl'}" in done.output, done.output
    ((repository, options),) = asked
    assert (repository, options["revision"], options["local_dir"]) == ("some/tiny-xl", "v1", tmp_path / "tiny-xl")
    files = {
        "model_index.json": True,
        "unet/diffusion_pytorch_model.safetensors": True,
        "unet/diffusion_pytorch_model.fp16.safetensors": False,
        "tokenizer/merges.txt": True,
        "unet/openvino_model.bin": False,
        "sd_xl_base_1.0.safetensors": False,
        "README.md": False,
    }
    taken = {name for name in files if any(fnmatch(name, wanted) for wanted in options["allow_patterns"])}
    taken -= {name for name in files if any(fnmatch(name, other) for other in options["ignore_patterns"])}
    assert taken == {name for name, wanted in files.items() if wanted}


def test_pull_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["models", "pull", "some/tiny"])
    assert done.exit_code == 1 and "--into" in done.output
    (tmp_path / "tiny").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: None)
    done = CliRunner().invoke(app, ["models", "pull", "some/tiny", "--into", str(tmp_path)])
    assert done.exit_code == 1 and "some/tiny: " in done.output and "model_index.json" in done.output
