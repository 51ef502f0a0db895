"""``darkroom models check`` and ``adopt``, on a tiny model of the zoo's format."""

from __future__ import annotations

import shutil
from pathlib import Path

from typer.testing import CliRunner

from service.cli import app


def test_check_tells_what_is_there_and_what_is_broken(sdxl_folder: Path, tmp_path: Path) -> None:
    wide = {"COLUMNS": "200"}
    done = CliRunner().invoke(app, ["models", "check", str(sdxl_folder), "--load"], env=wide)
    assert done.exit_code == 0 and "nothing is missing" in done.output and "StableDiffusionXLPipeline" in done.output
    assert all(part in done.output for part in ("unet", "vae", "text_encoder_2", "F32", "licence not stated"))
    (tmp_path / "x.safetensors").write_bytes(b"x")
    done = CliRunner().invoke(app, ["models", "check", str(tmp_path / "x.safetensors")], env=wide)
    assert done.exit_code == 1 and "x.safetensors is no safetensors file" in done.output


def test_what_only_loading_finds(sdxl_folder: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(sdxl_folder, tmp_path / "torn")
    for path in (torn / "tokenizer").iterdir():
        path.write_text("{")
    assert CliRunner().invoke(app, ["models", "check", str(torn)]).exit_code == 0
    done = CliRunner().invoke(app, ["models", "check", str(torn), "--load"])
    assert done.exit_code == 1 and "cannot be loaded" in done.output and "tokenizer" in done.output


def test_adopt_says_why_it_cannot(sdxl_folder: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "gone.safetensors"), str(tmp_path / "new"), "--tokenizers", str(sdxl_folder)]
    done = CliRunner().invoke(app, ["models", "adopt", *arguments])
    assert done.exit_code == 1 and "gone.safetensors is missing" in done.output
    assert not (tmp_path / "new").exists()
