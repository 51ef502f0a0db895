"""The figure of what 8 bits cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.cache import EngineCache
from engines.quality import measure
from models.spec.model import ModelSpec
from tests.support.tiny_towers import write_tiny_svd


@pytest.mark.timeout(600)  # the export, where the cores are busy
def test_pictures_in_8_bits_resemble_those_in_fp32(
    sdxl_folder: Path, cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ModelSpec.read
    monkeypatch.setattr("models.families.text_to_image.ModelSpec.read", lambda folder: _short(read(folder)))
    found = measure(sdxl_folder, cache, {"unet": "fp8", "vae/decoder": "int8"}, ["a cat", "a dog"], tmp_path)
    assert 15.0 < found.psnr_db < 90.0 and 0.0 < found.levels < 40.0
    assert 0.2 < found.bytes_ratio < 0.6 and found.seconds_ratio > 0


def _short(spec: ModelSpec) -> ModelSpec:
    return replace(spec, steps=2)


def test_what_cannot_be_measured_is_said(sdxl_folder: Path, cache: EngineCache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'text_encoder' is none of tiny-xl"):
        measure(sdxl_folder, cache, {"text_encoder": "int8"}, ["a cat"], tmp_path)
    with pytest.raises(ValueError, match="without prompts"):
        measure(sdxl_folder, cache, {"unet": "int8"}, [], tmp_path)
    write_tiny_svd(tmp_path / "tiny-svd")
    with pytest.raises(ValueError, match="does not draw from text"):
        measure(tmp_path / "tiny-svd", cache, {"unet": "int8"}, ["a cat"], tmp_path)
