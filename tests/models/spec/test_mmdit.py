"""Published transformer configs to specs: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.spec.mmdit import MMDiTSpec, read_mmdit_spec

SD3_MEDIUM: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "_diffusers_version": "0.29.0.dev0",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
REFUSED = {
    "patch_size": 4,
    "qk_norm": "layer_norm",
    "caption_projection_dim": 1152,
    "dual_attention_layers": [0, 24],
    "num_layers": 0,
    "num_attention_heads": None,
    "pos_embed_max_size": None,
    "in_channels": 16.0,
    "out_channels": -1,
    "sample_size": True,
    "rope_theta": 10000,
}


def test_config_of_sd3_is_read() -> None:
    assert MMDiTSpec.from_config(SD3_MEDIUM) == MMDiTSpec(
        in_channels=16,
        out_channels=16,
        depth=24,
        heads=24,
        head_dim=64,
        context_dim=4096,
        vector_dim=2048,
        position_size=192,
        native_size=64,
        dual_attention_layers=(),
        qk_norm=False,
    )


def test_options_of_sd3_5_are_read() -> None:
    spec = MMDiTSpec.from_config({**SD3_MEDIUM, "qk_norm": "rms_norm", "dual_attention_layers": [0, 1, 2]})
    assert (spec.qk_norm, spec.dual_attention_layers, spec.width) == (True, (0, 1, 2), 1536)


@pytest.mark.parametrize(("out_channels", "expected"), [(16, 16), (None, 33)])
def test_an_editing_network_reads_more_channels_than_it_writes(out_channels: int | None, expected: int) -> None:
    spec = MMDiTSpec.from_config({**SD3_MEDIUM, "in_channels": 33, "out_channels": out_channels})
    assert (spec.in_channels, spec.out_channels) == (33, expected)


@pytest.mark.parametrize(("key", "value"), REFUSED.items(), ids=list(REFUSED))
def test_config_is_refused_by_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        MMDiTSpec.from_config({**SD3_MEDIUM, key: value})


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ValueError, match="joint_attention_dim=None"):
        MMDiTSpec.from_config({k: v for k, v in SD3_MEDIUM.items() if k != "joint_attention_dim"})


def test_a_width_without_room_for_sines_and_cosines_of_both_axes_is_refused() -> None:
    odd = {"num_attention_heads": 3, "attention_head_dim": 6, "caption_projection_dim": 18}
    with pytest.raises(ValueError, match="= 18, expected a multiple of 4"):
        MMDiTSpec.from_config({**SD3_MEDIUM, **odd})


def test_a_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"transformer/config\.json is missing"):
        read_mmdit_spec(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(SD3_MEDIUM))
    assert read_mmdit_spec(tmp_path) == MMDiTSpec.from_config(SD3_MEDIUM)
