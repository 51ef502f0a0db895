"""``darkroom models``."""

from __future__ import annotations

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
    assert all(text in done.output for text in ("tiny", "text-to-image", "64x32", "not stated"))


def test_check_without_names_looks_at_all(offline: list[TextToImage], tmp_path: Path) -> None:
    write_model(tmp_path / "zoo" / "torn")
    done = CliRunner().invoke(app, ["models", "check"])
    assert done.exit_code == 1 and "tiny: " in done.output and "torn: " in done.output, "neither has weights"
    done = CliRunner().invoke(app, ["models", "check", "tiny", "huge"])
    assert done.exit_code == 1 and "'huge' is no path and not installed; installed: tiny, torn" in done.output


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
