"""``darkroom models inspect`` and ``adopt``, on a tiny model of the zoo's format."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from service.cli import app


def test_inspect_tells_what_is_there_and_what_is_broken(sdxl_folder: Path, tmp_path: Path) -> None:
    wide = {"COLUMNS": "200"}
    done = CliRunner().invoke(app, ["models", "inspect", str(sdxl_folder)], env=wide)
    assert done.exit_code == 0 and "nothing is missing" in done.output and "StableDiffusionXLPipeline" in done.output
    assert all(part in done.output for part in ("unet", "vae", "text_encoder_2", "F32"))
    (tmp_path / "x.safetensors").write_bytes(b"x")
    done = CliRunner().invoke(app, ["models", "inspect", str(tmp_path / "x.safetensors")], env=wide)
    assert done.exit_code == 1 and "x.safetensors is no safetensors file" in done.output


def test_adopt_says_why_it_cannot(sdxl_folder: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "gone.safetensors"), str(tmp_path / "new"), "--tokenizers", str(sdxl_folder)]
    done = CliRunner().invoke(app, ["models", "adopt", *arguments])
    assert done.exit_code == 1 and "gone.safetensors is missing" in done.output
    assert not (tmp_path / "new").exists()
