"""Sets of adapters and whole models: which parts they change, and that each part gets its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5EncoderModel

from models.adapters.file import DENOISER, read_adapter
from models.adapters.fuse import Fusible, Weighted, adapters_id
from models.adapters.whole import AdapterSet, fuse_denoiser, fuse_text_encoders, parts_changed
from models.eight_bit import EightBitLinear
from models.encoders import load_encoder, load_t5_in_8_bits
from models.families.text_to_image import load_conditioner, load_denoisers
from models.spec.model import ModelSpec
from tests.support.adapters import low_rank, write_peft
from tests.support.tiny_towers import write_tiny_ldm_upscaler, write_tiny_refiner, write_tiny_sd3


def one_layer(network: nn.Module, ending: str) -> list[str]:
    return [next(n.removesuffix(".weight") for n, _ in network.named_parameters() if n.endswith(f"{ending}.weight"))]


def adapter(path: Path, parts: dict[str, nn.Module], ending: str) -> Weighted:
    """One that changes one layer of each part."""
    tensors = {}
    for prefix, network in parts.items():
        write_peft(path, low_rank(network, one_layer(network, ending), 1), f"{prefix}.")
        tensors |= load_file(path)
    save_file(tensors, path)
    return Weighted(read_adapter(path), 1.0)


def changed(networks: Sequence[nn.Module], others: Sequence[nn.Module]) -> list[bool]:
    """Of each pair, whether any weight differs."""
    pairs = zip(networks, others, strict=True)
    return [
        any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in pairs
    ]


def test_the_text_encoders_of_stable_diffusion_3(tmp_path: Path) -> None:
    write_tiny_sd3(tmp_path / "sd3")
    spec = ModelSpec.read(tmp_path / "sd3")
    plain, other = load_conditioner(spec), load_conditioner(spec)
    t5, towers = plain.t5.network, [tower.network.clip for tower in plain.text.towers]  # type: ignore[union-attr]
    set_ = [adapter(tmp_path / "t5.safetensors", {"text_encoder_3": t5}, ".q")]
    assert parts_changed(spec, set_) == {"text_encoder_3"}
    fuse_text_encoders(other, spec, set_)
    theirs = [*(tower.network.clip for tower in other.text.towers), other.t5.network]  # type: ignore[union-attr]
    assert changed([*towers, t5], theirs) == [False, False, True]
    both = [adapter(tmp_path / "both.safetensors", {"text_encoder_2": towers[1]}, "q_proj"), *set_]
    fuse_text_encoders(other, spec, both)
    assert changed([*towers, t5], theirs) == [False, True, True]


def test_t5_in_8_bits_carries_what_the_full_one_does_rounded(tmp_path: Path) -> None:
    write_tiny_sd3(tmp_path / "sd3")
    spec, folder = ModelSpec.read(tmp_path / "sd3"), tmp_path / "sd3" / "text_encoder_3"
    full, rounded, plain = load_encoder(T5EncoderModel, folder), load_t5_in_8_bits(folder), load_t5_in_8_bits(folder)
    set_ = [adapter(tmp_path / "t5.safetensors", {"text_encoder_3": full}, ".q")]
    assert parts_changed(spec, set_) == {"text_encoder_3"}
    Fusible(full, folder).carry(set_)
    fusible = Fusible(rounded, folder)
    fusible.carry(set_)
    assert changed([plain], [rounded]) == [True]
    for name, layer in rounded.named_modules():
        if isinstance(layer, EightBitLinear):
            expected = EightBitLinear(*reversed(layer.weight.shape))
            expected.hold(full.get_parameter(f"{name}.weight"))
            assert torch.equal(layer.weight, expected.weight) and torch.equal(layer.scale, expected.scale)
    fusible.carry([])
    assert changed([plain], [rounded]) == [False]


def test_a_refiners_only_text_encoder_is_the_second(tmp_path: Path) -> None:
    write_tiny_refiner(tmp_path / "refiner")
    spec = ModelSpec.read(tmp_path / "refiner")
    plain, other = load_conditioner(spec), load_conditioner(spec)
    (tower,), (theirs,) = ([tower.network.clip for tower in each.text.towers] for each in (plain, other))
    set_ = [adapter(tmp_path / "a.safetensors", {"text_encoder_2": tower}, "q_proj")]
    fuse_text_encoders(other, spec, set_)
    assert changed([tower], [theirs]) == [True]
    wrong = [adapter(tmp_path / "b.safetensors", {"text_encoder": tower}, "q_proj")]
    with pytest.raises(ValueError, match="changes the text_encoder, which model 'refiner' has not"):
        parts_changed(spec, wrong)


def test_a_model_that_reads_no_text_has_no_text_encoders_to_change(tmp_path: Path) -> None:
    write_tiny_ldm_upscaler(tmp_path / "ldm")
    spec = ModelSpec.read(tmp_path / "ldm")
    plain, other = (load_denoisers(spec.folder)["unet"] for _ in range(2))
    set_ = [adapter(tmp_path / "unet.safetensors", {"unet": plain}, "to_q")]  # type: ignore[dict-item]
    assert parts_changed(spec, set_) == {DENOISER}
    fuse_text_encoders(load_conditioner(spec), spec, set_)
    fuse_denoiser({"unet": other}, spec, set_)
    assert changed([plain], [other]) == [True]  # type: ignore[list-item]


def test_a_set_with_faults_is_found_before_anything_is_read(sdxl_folder: Path, tmp_path: Path) -> None:
    spec, denoisers = ModelSpec.read(sdxl_folder), load_denoisers(sdxl_folder)
    unet, other = denoisers["unet"], load_denoisers(sdxl_folder)
    assert isinstance(unet, nn.Module) and isinstance(other["unet"], nn.Module)
    good = adapter(tmp_path / "good.safetensors", {"unet": unet}, "to_q")
    assert parts_changed(spec, [good]) == {DENOISER}
    fuse_denoiser(other, spec, [good])
    assert changed([unet], [other["unet"]]) == [True]
    tensors = load_file(tmp_path / "good.safetensors")
    down = next(name for name in tensors if "lora_A" in name)
    for name, value, said in (
        ("shape", tensors[down][:, 1:].contiguous(), "does not fit this network"),
        ("nan", tensors[down] * torch.nan, "not finite"),
    ):
        save_file({**tensors, down: value}, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=said):
            parts_changed(spec, [good, Weighted(read_adapter(tmp_path / f"{name}.safetensors"), 1.0)])


def test_a_set_read_again_is_the_same_or_an_error(sdxl_folder: Path, tmp_path: Path) -> None:
    unet = load_denoisers(sdxl_folder)["unet"]
    assert isinstance(unet, nn.Module)
    set_ = [adapter(tmp_path / "a.safetensors", {"unet": unet}, "to_q")]
    kept = AdapterSet.of(ModelSpec.read(sdxl_folder), set_)
    assert kept.parts == {DENOISER} and adapters_id(kept.read()) == kept.identity == adapters_id(set_)
    adapter(tmp_path / "b.safetensors", {"unet": unet}, "to_v")
    shutil.move(tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: changed on disk"):
        kept.read()
