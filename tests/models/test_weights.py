"""Checkpoints: every file layout that is published, nothing loaded but what fits to the letter, and the way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    VQModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.weights import (
    FP16_WEIGHTS,
    OLD_ATTENTION,
    WEIGHTS,
    load_mmdit,
    load_part,
    load_temporal_vae,
    load_tiny_decoder,
    load_unet,
    load_vae,
    load_vq,
    save_network,
    weight_files,
)
from tests.support.tiny_xl import randomise

LEVEL = {"down_block_types": ("DownEncoderBlock2D",), "block_out_channels": (32,)}
OTHERS = {
    "video": (load_temporal_vae, "vae", lambda: AutoencoderKLTemporalDecoder(**LEVEL)),
    "vq": (load_vq, "vqvae", lambda: VQModel(**LEVEL, up_block_types=("UpDecoderBlock2D",))),
    "tiny": (
        load_tiny_decoder,
        ".",
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
    ),
    "mmdit": (
        load_mmdit,
        "transformer",
        lambda: SD3Transformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
        ),
    ),
}
PARTS = {"unet": (load_unet, UNet2DConditionModel), "vae": (load_vae, AutoencoderKL)}
Relative = Callable[[Tensor, Tensor], float]
A_KEY = {"unet": "mid_block.resnets.0.conv1.weight", "vae": "decoder.mid_block.resnets.0.conv1.weight"}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(sdxl_folder: Path, tmp_path: Path) -> Path:
    """A copy of the networks that a test may break."""
    for part in PARTS:
        shutil.copytree(sdxl_folder / part, tmp_path / part)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def same_parameters(network: nn.Module, expected: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[k], v.float()) for k, v in expected.items())


def test_a_published_folder_loads_in_fp32_ready_for_inference(folder: Path, part: str) -> None:
    network = PARTS[part][0](folder)
    assert same_parameters(network, load_file(folder / part / WEIGHTS))
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())


def test_a_missing_key_is_refused(folder: Path, part: str) -> None:
    rewrite(folder / part, lambda state: state.pop(A_KEY[part]))
    with pytest.raises(ValueError, match=f"missing keys .*{A_KEY[part]}"):
        PARTS[part][0](folder)


def test_an_extra_key_is_refused(folder: Path, part: str) -> None:
    rewrite(folder / part, lambda state: state.update({"lora.down": torch.zeros(2)}))
    with pytest.raises(ValueError, match="unexpected keys .*lora.down"):
        PARTS[part][0](folder)


def test_a_wrong_shape_is_refused(folder: Path, part: str) -> None:
    rewrite(folder / part, lambda state: state.update({A_KEY[part]: state[A_KEY[part]][..., :1].contiguous()}))
    with pytest.raises(ValueError, match=f"shapes differ.*{A_KEY[part]}"):
        PARTS[part][0](folder)


@pytest.mark.parametrize(("name", "message"), [("config.json", "config.json is missing"), (WEIGHTS, "holds neither")])
def test_a_missing_file_is_refused(folder: Path, part: str, name: str, message: str) -> None:
    (folder / part / name).unlink()
    with pytest.raises(ValueError, match=message):
        PARTS[part][0](folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard_size", ["10GB", "150KB"])
def test_every_layout_that_diffusers_writes_is_read(
    folder: Path, part: str, variant: str | None, shard_size: str
) -> None:
    """One file or shards under an index, fp32 or the half-precision variant."""
    load, published_class = PARTS[part]
    published = published_class.from_pretrained(folder / part).to(torch.float16 if variant else torch.float32)
    (folder / part / WEIGHTS).unlink()
    published.save_pretrained(folder / part, variant=variant, max_shard_size=shard_size)
    files = weight_files(folder / part)
    assert (len(files) > 1) == (shard_size == "150KB")
    assert all(("fp16" in path.name) == (variant == "fp16") for path in files)
    network = load(folder)
    assert same_parameters(network, published.state_dict())
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_the_full_precision_file_wins_over_the_variant(folder: Path, part: str) -> None:
    save_file({}, folder / part / FP16_WEIGHTS)
    assert weight_files(folder / part) == [folder / part / WEIGHTS]


def test_a_missing_shard_is_named(folder: Path) -> None:
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(folder / "unet", max_shard_size="150KB")
    (folder / "unet" / WEIGHTS).unlink(missing_ok=True)
    shard = weight_files(folder / "unet")[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        load_unet(folder)


def test_diffusers_reads_what_save_network_wrote(folder: Path, part: str, tmp_path: Path) -> None:
    load, published_class = PARTS[part]
    network = load(folder)
    config = json.loads((folder / part / "config.json").read_text())
    save_network(tmp_path / "again" / part, config, network.state_dict(), torch.float32)
    published = published_class.from_pretrained(tmp_path / "again" / part)
    assert same_parameters(network, published.state_dict())
    assert same_parameters(load(tmp_path / "again"), published.state_dict())


def test_outputs_survive_the_round_trip(folder: Path, tmp_path: Path, relative: Relative) -> None:
    vae = load_vae(folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    save_network(tmp_path / "again", config, vae.state_dict(), torch.float32)
    published = AutoencoderKL.from_pretrained(tmp_path / "again")
    latents = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = published.decode(latents / published.config.scaling_factor).sample
        assert expected.std() > 0.2
        assert relative(vae.decode(latents), expected) < 1e-5


def test_an_autoencoder_of_pictures_by_the_name_of_its_part(folder: Path) -> None:
    randomise(VQModel(**LEVEL, up_block_types=("UpDecoderBlock2D",)), 1).save_pretrained(folder / "vqvae")
    for part, load in {"vae": load_vae, "vqvae": load_vq}.items():
        expected, loaded = load(folder), load_part(folder, part, torch.bfloat16)
        assert type(loaded) is type(expected)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert all(
            torch.equal(tensor.bfloat16(), loaded.state_dict()[k]) for k, tensor in expected.state_dict().items()
        )


def test_save_network_in_half_precision(folder: Path, part: str, tmp_path: Path) -> None:
    load, _ = PARTS[part]
    network = load(folder)
    config = json.loads((folder / part / "config.json").read_text())
    save_network(tmp_path / "half" / part, config, network.state_dict(), torch.float16)
    stored = load_file(tmp_path / "half" / part / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert same_parameters(load(tmp_path / "half"), stored)


@pytest.mark.parametrize(("load", "part", "make"), OTHERS.values(), ids=OTHERS)
def test_every_other_network_loads_from_where_it_is_published(
    load: Callable[..., nn.Module], part: str, make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    published = randomise(make(), 1)
    published.save_pretrained(tmp_path / part)
    network = load(tmp_path)
    assert same_parameters(network, published.state_dict())
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert {p.dtype for p in load(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}
    rewrite(tmp_path / part, lambda state: state.pop(min(state)))
    with pytest.raises(ValueError, match="missing keys"):
        load(tmp_path)


def test_half_precision_only_for_weights_that_bear_it(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is float16.*force_upcast.*use float32 or bfloat16"):
        load_vae(folder, torch.float16)
    assert {p.dtype for p in load_vae(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": False}))
    assert {p.dtype for p in load_vae(folder, torch.float16).parameters()} == {torch.float16}
    assert {p.dtype for p in load_unet(folder, torch.float16).parameters()} == {torch.float16}


def test_an_autoencoder_may_lie_in_another_folder(folder: Path) -> None:
    (folder / "vae").rename(folder / "vqvae")
    assert same_parameters(load_vae(folder, part="vqvae"), load_file(folder / "vqvae" / WEIGHTS))


def test_the_attention_names_of_2022_are_read(folder: Path) -> None:
    expected = load_vae(folder).state_dict()
    present = {f"attentions.0.{new}.": f"attentions.0.{old}." for old, new in OLD_ATTENTION.items()}

    def age(state: dict[str, Tensor]) -> None:
        for name in list(state):
            old = name
            for new_part, old_part in present.items():
                old = old.replace(new_part, old_part)
            state[old] = state.pop(name)

    rewrite(folder / "vae", age)
    names = load_file(folder / "vae" / WEIGHTS).keys()
    assert len(names - expected.keys()) == 16  # two halves, four layers, weight and bias
    assert same_parameters(AutoencoderKL.from_pretrained(folder / "vae"), expected)  # so they are what was published
    assert same_parameters(load_vae(folder), expected)
