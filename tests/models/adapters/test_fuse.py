"""Adapters in weights: the same outputs as peft's, and the base back to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from models.adapters.file import DENOISER, read_adapter
from models.adapters.fuse import Fusible, Weighted, adapters_id
from models.blocks import fourier_features
from models.checkpoints.ldm import LdmUNetNames
from models.encoders import load_encoder
from models.weights import WEIGHTS, load_mmdit, load_unet
from tests.support.adapters import ALPHA, RANK, low_rank, write_kohya, write_peft
from tests.support.tiny_towers import write_tiny_sd3, write_tiny_svd

Relative = Callable[[Tensor, Tensor], float]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1")


def linears(network: nn.Module, endings: tuple[str, ...] = TARGETS) -> list[str]:
    return [
        name.removesuffix(".weight")
        for name, _ in network.named_parameters()
        if name.endswith(tuple(f"{e}.weight" for e in endings))
    ]


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def unet_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, context, pooled text and six numbers."""
    generator = torch.Generator().manual_seed(0)
    x, context, pooled = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 5, 64), (1, 28)))
    return x, context, pooled, torch.tensor([[32.0, 24.0, 0.0, 3.0, 32.0, 24.0]])


def unet_output(network: nn.Module) -> Tensor:
    x, context, pooled, numbers = unet_inputs()
    vector = torch.cat([pooled, fourier_features(numbers, 8).flatten(1)], dim=1)
    with torch.inference_mode():
        return network(x, torch.tensor([321.0]), context, vector)


def published_unet_output(network: nn.Module, scale: float) -> Tensor:
    x, context, pooled, numbers = unet_inputs()
    network.set_adapters("default", scale)
    with torch.inference_mode():
        added = {"text_embeds": pooled, "time_ids": numbers}
        result: Tensor = network(x, torch.tensor([321.0]), context, added_cond_kwargs=added).sample
    return result


@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_a_unet_with_an_adapter_is_pefts(sdxl_folder: Path, tmp_path: Path, relative: Relative, scale: float) -> None:
    theirs = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    theirs.add_adapter(LoraConfig(r=RANK, lora_alpha=5, target_modules=list(TARGETS)))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 * parameter[0].numel() ** -0.5
    theirs.save_lora_adapter(tmp_path, weight_name="a.safetensors")
    network = load_unet(sdxl_folder)
    plain = unet_output(network)
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.parts == {DENOISER}
    Fusible(network, sdxl_folder / "unet").carry([Weighted(adapter, scale)])
    expected = published_unet_output(theirs, scale)
    assert relative(unet_output(network), expected) < 1e-5
    assert relative(plain, expected) > 1e-2


def test_the_transformer_and_the_video_network_too(tmp_path: Path, relative: Relative) -> None:
    """Of the video network the temporal attention alone, as in adapters of camera motion."""
    write_tiny_sd3(tmp_path / "sd3", t5=False)
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path / "sd3" / "transformer")
    network = load_mmdit(tmp_path / "sd3")
    layers = linears(network, ("to_q", "add_k_proj", "to_add_out", "norm1.linear"))
    path = write_peft(tmp_path / "a.safetensors", low_rank(network, layers, 1), "transformer.")
    theirs.load_lora_adapter(load_file(path), prefix="transformer")
    Fusible(network, tmp_path / "sd3" / "transformer").carry([Weighted(read_adapter(path), 1.0)])
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 16, 8, 8, generator=generator), torch.randn(1, 6, 72, generator=generator)
    vector, time = torch.randn(1, 56, generator=generator), torch.tensor([500.0])
    with torch.inference_mode():
        expected = theirs(x, context, vector, time).sample
        assert relative(network(x, time, context, vector), expected) < 1e-5
        assert relative(load_mmdit(tmp_path / "sd3")(x, time, context, vector), expected) > 1e-2

    write_tiny_svd(tmp_path / "svd")
    video = load_unet(tmp_path / "svd")
    temporal = [layer for layer in linears(video, ("attn1.to_q",)) if "temporal_transformer_blocks" in layer]
    path = write_peft(tmp_path / "b.safetensors", low_rank(video, temporal, 2), "unet.")
    before = bits(video)
    Fusible(video, tmp_path / "svd" / "unet").carry([Weighted(read_adapter(path), 1.0)])
    changed = {name for name, tensor in video.state_dict().items() if not torch.equal(tensor, before[name])}
    assert temporal and changed == {f"{layer}.weight" for layer in temporal}


def injected(network: nn.Module, targets: list[str] | str, seed: int, name: str = "default") -> dict[str, Tensor]:
    """Give a network of a library a random adapter by means of peft, and return its matrices by peft's names."""
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=5, target_modules=targets), network, adapter_name=name)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for key, parameter in network.named_parameters():
        if "lora_" in key and f".{name}." in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 * parameter[0].numel() ** -0.5
            tensors[key.replace(f".{name}.", ".")] = parameter.data.clone()
    return tensors


def written(path: Path, tensors: dict[str, Tensor], prefix: str) -> Weighted:
    settings = json.dumps({f"{prefix}.r": RANK, f"{prefix}.lora_alpha": 5})
    named = {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, path, metadata={"lora_adapter_metadata": settings})
    return Weighted(read_adapter(path), 1.0)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # several are what is wanted
def test_two_adapters_with_scales_are_pefts(sdxl_folder: Path, tmp_path: Path, relative: Relative) -> None:
    theirs = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    scales = {"one": 0.4, "two": -0.7}
    chosen = []
    for seed, (name, targets) in enumerate({"one": ["to_q", "conv1"], "two": ["to_q", "to_v"]}.items()):
        theirs.add_adapter(LoraConfig(r=RANK, lora_alpha=5, target_modules=targets), adapter_name=name)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in theirs.named_parameters():
            if f".{name}." in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 * parameter[0].numel() ** -0.5
        theirs.save_lora_adapter(tmp_path, adapter_name=name, weight_name=f"{name}.safetensors")
        chosen.append(Weighted(read_adapter(tmp_path / f"{name}.safetensors"), scales[name]))
    x, context, pooled, numbers = unet_inputs()
    theirs.set_adapters(list(scales), list(scales.values()))
    with torch.inference_mode():
        added = {"text_embeds": pooled, "time_ids": numbers}
        expected = theirs(x, torch.tensor([321.0]), context, added_cond_kwargs=added).sample
    network = load_unet(sdxl_folder)
    fusible = Fusible(network, sdxl_folder / "unet")
    fusible.carry(chosen)
    assert relative(unet_output(network), expected) < 1e-5
    fusible.carry([replace(chosen[0], weight=1.0), chosen[1]])
    assert relative(unet_output(network), expected) > 1e-3


def test_a_text_encoder_with_an_adapter_is_pefts(sdxl_folder: Path, tmp_path: Path, relative: Relative) -> None:
    folder, tokens = sdxl_folder / "text_encoder", torch.arange(7)[None]
    network, theirs = load_encoder(CLIPTextModel, folder), load_encoder(CLIPTextModel, folder)
    tensors = injected(theirs, ["q_proj", "out_proj", "fc1"], 1)
    wrapped = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    with torch.inference_mode():
        plain, expected = network(tokens).last_hidden_state, theirs(tokens).last_hidden_state
        Fusible(network, folder).carry([written(tmp_path / "a.safetensors", wrapped, "text_encoder")])
        assert relative(network(tokens).last_hidden_state, expected) < 1e-5
    assert relative(plain, expected) > 1e-2


def test_temporal_attention_with_an_adapter_is_pefts(tmp_path: Path, relative: Relative) -> None:
    """diffusers reads no adapters for its video network; peft itself puts them into any."""
    write_tiny_svd(tmp_path)
    theirs = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / "unet")
    tensors = injected(theirs, r".*temporal_transformer_blocks.*\.(to_q|to_k|to_v|to_out\.0)", 1)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 3, 8, 8, 8, generator=generator), torch.randn(1, 1, 28, generator=generator)
    numbers, time = torch.tensor([[6.0, 127.0, 0.02]]), torch.tensor([1.3])
    network = load_unet(tmp_path)
    assert context.shape[-1] == network.spec.context_dim
    vector = fourier_features(numbers, network.spec.time_id_dim).flatten(1)
    with torch.inference_mode():
        plain, expected = network(x, time, context, vector), theirs(x, time, context, added_time_ids=numbers).sample
        Fusible(network, tmp_path / "unet").carry([written(tmp_path / "a.safetensors", tensors, "unet")])
        assert relative(network(x, time, context, vector), expected) < 1e-5
    assert relative(plain, expected) > 1e-3


def test_a_file_does_not_change_when_its_mapped_weights_do(sdxl_folder: Path, tmp_path: Path) -> None:
    network = load_unet(sdxl_folder)
    path = sdxl_folder / "unet" / WEIGHTS
    before = path.read_bytes()
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    adapter = write_peft(tmp_path / "a.safetensors", low_rank(network, linears(network), 1), "unet.")
    Fusible(network, sdxl_folder / "unet").carry([Weighted(read_adapter(adapter), 1.0)])
    assert path.read_bytes() == before and same(bits(load_unet(sdxl_folder)), load_file(path))


def test_every_naming_of_one_adapter_gives_one_network(sdxl_folder: Path, tmp_path: Path) -> None:
    network = load_unet(sdxl_folder)
    layers, fusible = linears(network), Fusible(network, sdxl_folder / "unet")
    matrices = low_rank(network, layers, 1)
    scaled = {layer: (down, up * ALPHA / RANK) for layer, (down, up) in matrices.items()}
    ldm = LdmUNetNames(network.spec)
    files = [
        write_peft(tmp_path / "peft.safetensors", scaled, "unet."),
        write_kohya(tmp_path / "kohya.safetensors", matrices, "lora_unet_"),
        write_kohya(
            tmp_path / "ldm.safetensors",
            matrices,
            "lora_unet_",
            lambda layer: ldm(f"{layer}.weight")[0].name.removesuffix(".weight"),
        ),
    ]
    base = bits(network)
    fused = []
    for path in files:
        fusible.carry([Weighted(read_adapter(path), 0.5)])
        fused.append(bits(network))
    assert not same(fused[0], base)
    assert same(fused[1], fused[2])
    assert all(torch.allclose(fused[0][name], fused[1][name], atol=1e-6) for name in base)


def test_fused_projections_of_sd3(tmp_path: Path) -> None:
    """An adapter in the authors' names has one layer where the network has three."""
    write_tiny_sd3(tmp_path, t5=False)
    network = load_mmdit(tmp_path)
    block = "transformer_blocks.1.attn"
    matrices = low_rank(network, [f"{block}.to_q"], 1)
    down, up = matrices[f"{block}.to_q"]
    wide = torch.cat([up, 2 * up, 3 * up])
    save_file(
        {"lora_unet_joint_blocks_1_x_block_attn_qkv.lora_down.weight": down,
         "lora_unet_joint_blocks_1_x_block_attn_qkv.lora_up.weight": wide},
        tmp_path / "a.safetensors",
    )  # fmt: skip
    base = bits(network)
    Fusible(network, tmp_path / "transformer").carry([Weighted(read_adapter(tmp_path / "a.safetensors"), 1.0)])
    for times, name in enumerate(("to_q", "to_k", "to_v"), start=1):
        key = f"{block}.{name}.weight"
        assert torch.allclose(network.state_dict()[key] - base[key], times * (up @ down), atol=1e-5)


@pytest.mark.parametrize("prefix", ["lora_te1_text_model_", "lora_te_text_model_"])
def test_a_text_encoder_with_an_adapter(sdxl_folder: Path, tmp_path: Path, prefix: str) -> None:
    network = load_encoder(CLIPTextModel, sdxl_folder / "text_encoder")
    matrices = low_rank(network, linears(network, ("q_proj", "mlp.fc1")), 1)
    adapter = read_adapter(write_kohya(tmp_path / "a.safetensors", matrices, prefix))
    before = bits(network)
    fusible = Fusible(network, sdxl_folder / "text_encoder")
    fusible.carry([Weighted(adapter, 2.0)])
    for layer, (down, up) in matrices.items():
        change = network.get_parameter(f"{layer}.weight") - before[f"{layer}.weight"]
        assert torch.allclose(change, 2.0 * ALPHA / RANK * (up @ down), atol=1e-5)
    fusible.carry([])
    assert same(bits(network), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_added_removed_and_added_again_to_the_bit(sdxl_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    network = load_unet(sdxl_folder, dtype)
    fusible, base = Fusible(network, sdxl_folder / "unet"), bits(network)
    layers = linears(network)
    first, second = (
        Weighted(read_adapter(write_peft(tmp_path / f"{i}.safetensors", low_rank(network, some, i), "unet.")), 0.3 * i)
        for i, some in ((1, layers[:9]), (2, layers[5:]))
    )
    fusible.carry([first])
    alone = bits(network)
    fusible.carry([first, second])
    together = bits(network)
    assert fusible.identity == adapters_id([second, first]) != adapters_id([first])
    fusible.carry([second])
    fusible.carry([])
    assert fusible.identity == "" and same(bits(network), base)
    fusible.carry([second, first])
    assert same(bits(network), together) and not same(together, alone) and not same(alone, base)
    fusible.carry([first])
    assert same(bits(network), alone)


def test_an_adapter_that_does_not_fit_changes_nothing(sdxl_folder: Path, tmp_path: Path) -> None:
    network = load_unet(sdxl_folder)
    fusible, layers = Fusible(network, sdxl_folder / "unet"), linears(network)
    good = Weighted(read_adapter(write_peft(tmp_path / "g.safetensors", low_rank(network, layers, 1), "unet.")), 1.0)
    fusible.carry([good])
    before, identity = bits(network), fusible.identity
    down, up = low_rank(network, layers[-1:], 2)[layers[-1]]
    faults = {
        "changes nowhere of the denoiser, which this network has not": {"nowhere": (down, up)},
        r"does not fit this network: \[2, ": {layers[-1]: (down, up[:2])},
        "not finite": {layers[-1]: (down * float("nan"), up)},
    }
    for i, (message, matrices) in enumerate(faults.items()):
        bad = Weighted(read_adapter(write_peft(tmp_path / f"{i}.safetensors", matrices, "unet.")), 1.0)
        with pytest.raises(ValueError, match=message):
            fusible.carry([good, bad])
        assert same(bits(network), before) and fusible.identity == identity
    with pytest.raises(ValueError, match="expected a finite number"):
        Weighted(good.adapter, float("inf"))


def test_a_base_that_cannot_be_read_leaves_no_identity(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    for name in ("config.json", WEIGHTS):
        (folder / name).write_bytes((sdxl_folder / "unet" / name).read_bytes())
    network = load_unet(tmp_path)
    fusible, base = Fusible(network, folder), bits(network)
    path = write_peft(tmp_path / "a.safetensors", low_rank(network, linears(network), 1), "unet.")
    content = (folder / WEIGHTS).read_bytes()
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(len(content) // 2)
    with pytest.raises(ValueError, match="cannot be read"):
        fusible.carry([Weighted(read_adapter(path), 1.0)])
    assert fusible.identity is None
    (folder / WEIGHTS).write_bytes(content)
    fusible.carry([])
    assert fusible.identity == "" and same(bits(network), base)
