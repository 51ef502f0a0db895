"""Files of adapters: every published naming is read to the same layers, and every other kind is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.adapters.file import DENOISER, read_adapter

DOWN, UP = torch.arange(6.0).view(2, 3), torch.arange(8.0).view(4, 2)
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("down", "up", "part", "name"),
    [
        (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight", DENOISER, Q),
        (f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight", DENOISER, Q),
        (f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight", DENOISER, Q),
        (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight", DENOISER, Q),
        (
            f"unet.{Q[:-5]}.processor.to_q_lora.down.weight",
            f"unet.{Q[:-5]}.processor.to_q_lora.up.weight",
            DENOISER,
            Q,
        ),
        (
            f"{Q[:-5]}.processor.to_out_lora.down.weight",
            f"{Q[:-5]}.processor.to_out_lora.up.weight",
            DENOISER,
            f"{Q[:-5]}.to_out.0",
        ),
        ("lora_unet_a_b.lora_down.weight", "lora_unet_a_b.lora_up.weight", DENOISER, "a_b"),
        ("lora_te_a_b.lora_down.weight", "lora_te_a_b.lora_up.weight", "text_encoder", "a_b"),
        ("lora_te1_a_b.lora_down.weight", "lora_te1_a_b.lora_up.weight", "text_encoder", "a_b"),
        ("lora_te2_a_b.lora_down.weight", "lora_te2_a_b.lora_up.weight", "text_encoder_2", "a_b"),
        (
            "transformer.transformer_blocks.0.attn.to_k.lora_A.weight",
            "transformer.transformer_blocks.0.attn.to_k.lora_B.weight",
            DENOISER,
            "transformer_blocks.0.attn.to_k",
        ),
        (
            f"text_encoder.{TEXT}.lora_linear_layer.down.weight",
            f"text_encoder.{TEXT}.lora_linear_layer.up.weight",
            "text_encoder",
            TEXT,
        ),
        (f"text_encoder_2.{TEXT}.lora_A.weight", f"text_encoder_2.{TEXT}.lora_B.weight", "text_encoder_2", TEXT),
        (f"base_model.model.{TEXT}.lora_A.weight", f"base_model.model.{TEXT}.lora_B.weight", "text_encoder", TEXT),
    ],
)
def test_every_published_naming(tmp_path: Path, down: str, up: str, part: str, name: str) -> None:
    adapter = read_adapter(write(tmp_path / "a.safetensors", {down: DOWN, up: UP}))
    (layer,) = adapter.layers
    assert (layer.part, layer.name) == (part, name)
    assert torch.equal(adapter.delta(layer), UP @ DOWN)
    assert adapter.parts == {part}


def test_the_scale_is_alpha_over_the_rank(tmp_path: Path) -> None:
    tensors = {"lora_unet_a.lora_down.weight": DOWN, "lora_unet_a.lora_up.weight": UP}
    without = read_adapter(write(tmp_path / "1.safetensors", tensors))
    with_alpha = read_adapter(write(tmp_path / "2.safetensors", {**tensors, "lora_unet_a.alpha": torch.tensor(1.0)}))
    assert [each.layers[0].scale for each in (without, with_alpha)] == [1.0, 0.5]
    assert torch.equal(with_alpha.delta(with_alpha.layers[0]), 0.5 * (UP @ DOWN))
    assert without.sha256 != with_alpha.sha256


def test_what_peft_states_beside_the_tensors(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{n}.lora_{h}.weight": m for n in ("x.a", "x.b") for h, m in (("A", DOWN), ("B", UP))}
    path = write(tmp_path / "adapter_model.safetensors", tensors)
    scales, digests = {}, set()
    for options in ({}, {"use_rslora": True}, {"alpha_pattern": {"b": 8}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, **options}))
        adapter = read_adapter(path)
        scales[str(options)] = [layer.scale for layer in adapter.layers]
        digests.add(adapter.sha256)
    assert list(scales.values()) == [[2.0, 2.0], [4 / 2**0.5] * 2, [2.0, 4.0]]
    assert len(digests) == 3


def test_what_diffusers_states_in_the_header(tmp_path: Path) -> None:
    """By part for a pipeline, and without a part for one network."""
    tensors = {f"unet.{Q}.lora_A.weight": DOWN, f"unet.{Q}.lora_B.weight": UP}
    for stated in ({"unet.r": 2, "unet.lora_alpha": 6, "text_encoder.lora_alpha": 1}, {"r": 2, "lora_alpha": 6}):
        metadata = {"lora_adapter_metadata": json.dumps(stated)}
        assert read_adapter(write(tmp_path / "a.safetensors", tensors, metadata)).layers[0].scale == 3.0


GOOD = {"unet.a.lora_A.weight": DOWN, "unet.a.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({**GOOD, "unet.a.lora_magnitude_vector.weight": DOWN}, None, "DoRA adapter .*lora_magnitude_vector"),
        ({**GOOD, "lora_unet_a.dora_scale": DOWN}, None, "DoRA"),
        (GOOD, {"lora_adapter_metadata": '{"unet.use_dora": true}'}, "DoRA"),
        (GOOD, {"lora_adapter_metadata": "[" * 9}, "a.safetensors"),
        (GOOD, {"lora_adapter_metadata": '{"unet.alpha_pattern": {"(a+)+": 1}}'}, "alpha_pattern"),
        ({"lora_unet_a.hada_w1_a": DOWN}, None, "hada_w1_a is of an adapter that is no plain LoRA"),
        ({"lora_unet_a.lokr_w1": DOWN}, None, "no plain LoRA"),
        ({"something.weight": DOWN}, None, "something.weight is of no naming known here"),
        ({"unet.a.lora_A.weight": DOWN}, None, "lacks its up matrix"),
        ({"lora_unet_a.alpha": torch.tensor(1.0)}, None, "an alpha and nothing else"),
        ({**GOOD, "unet.a.lora_B.weight": DOWN}, None, r"matrices \[2, 3\] and \[2, 3\]"),
        ({**GOOD, "unet.a.lora_A.weight": DOWN.long()}, None, "is I64"),
        ({**GOOD, "unet.a.alpha": DOWN}, None, "expected one number"),
        ({**GOOD, "unet.a.alpha": torch.tensor(float("nan"))}, None, "the scale nan"),
        ({}, None, "holds no adapter"),
    ],
)
def test_anything_else_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None, message: str
) -> None:
    path = write(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=message):
        read_adapter(path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_adapter(tmp_path / "a.ckpt")
