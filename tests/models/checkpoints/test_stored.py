"""Stored weights: single file and folder give one network, to the bit, and nothing is taken but what fits to the
letter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, T5EncoderModel

from models.checkpoints.stored import stored_numbers, weight_files
from models.encoders import load_encoder
from models.families import text_to_image
from models.spec.config import read_json
from models.weights import load_mmdit, load_temporal_vae, load_unet, load_vae, load_vq, save_network
from tests.support.single_files import LAYOUT, PARTS, published_part, write_single_file
from tests.support.tiny_towers import (
    write_tiny_refiner,
    write_tiny_sd,
    write_tiny_sd3,
    write_tiny_svd,
    write_tiny_upscaler,
)
from tests.support.tiny_xl import randomise, write_tiny_xl

FOLDERS: dict[str, Callable[[Path], None]] = {
    "sd1": write_tiny_sd,
    "sd2": lambda folder: write_tiny_sd(folder, 2),
    "x4-upscaler": write_tiny_upscaler,
    "sdxl": write_tiny_xl,
    "sdxl-refiner": write_tiny_refiner,
    "svd": write_tiny_svd,
    "sd3": write_tiny_sd3,
}
ENCODERS = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "CLIPVisionModelWithProjection": CLIPVisionModelWithProjection,
    "T5EncoderModel": T5EncoderModel,
}


def load_part(folder: Path, part: str, layout: str) -> nn.Module:
    if "encoder" in part:
        (name,) = read_json(folder / part / "config.json")["architectures"]
        return load_encoder(ENCODERS[name], folder / part)
    if part == "vae":
        return (load_temporal_vae if layout == "svd" else load_vae)(folder)
    return load_mmdit(folder) if part == "transformer" else load_unet(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """By layout: a model folder, and the same model as configs beside a single file. Each is written once."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(layout: str) -> tuple[Path, Path]:
        if layout not in made:
            root = tmp_path_factory.mktemp(layout)
            FOLDERS[layout](root / "folder")
            shutil.copytree(root / "folder", root / "single", ignore=shutil.ignore_patterns("*.safetensors"))
            if layout == "sd3":
                _make_identity(root / "folder" / "text_encoder" / "model.safetensors")
            write_single_file(root / "folder", root / "single" / "model.safetensors", layout)
            made[layout] = root / "folder", root / "single"
        return made[layout]

    return get


def _make_identity(path: Path) -> None:
    """The projection that the single files of SD3 leave out."""
    state = load_file(path)
    size = state["text_model.embeddings.token_embedding.weight"].shape[1]
    state["text_projection.weight"] = torch.eye(len(state["text_projection.weight"]), size)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_single_file_is_the_folder_to_the_bit(pair: Callable[[str], tuple[Path, Path]], layout: str) -> None:
    folder, single = pair(layout)
    for part in PARTS[layout]:
        assert weight_files(single / part) == [single / "model.safetensors"]
        expected = load_part(folder, part, layout).state_dict()
        state = load_part(single, part, layout).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected), part
        assert any(float(tensor.std()) > 0.1 for tensor in state.values() if tensor.dim() > 1)


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "sd3"])
def test_a_folder_a_single_file_and_our_own_save_draw_the_same_picture(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path, layout: str
) -> None:
    """To the bit, wherever in a file a weight lies: they stay mapped."""
    folder, single = pair(layout)
    own = shutil.copytree(folder, tmp_path / "own")
    for part, load in {"unet": load_unet, "transformer": load_mmdit, "vae": load_vae}.items():
        if (own / part).is_dir():
            state = load(folder).state_dict()
            save_network(own / part, read_json(folder / part / "config.json"), state, torch.float32)
    pictures = [text_to_image.generate(text_to_image.load(one), "a red cat", 1, 2) for one in (folder, single, own)]
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])
    assert pictures[0].std() > 5.0


def test_the_numbers_of_each_part_are_counted_in_headers(pair: Callable[[str], tuple[Path, Path]]) -> None:
    folder, single = pair("sdxl")
    for part in PARTS["sdxl"]:
        numbers = sum(tensor.numel() for tensor in load_part(folder, part, "sdxl").state_dict().values())
        assert stored_numbers(folder / part) == numbers
        assert abs(stored_numbers(single / part) - numbers) < 10, "of a scalar that only single files have"
    with pytest.raises(ValueError, match="which has no transformer"):
        stored_numbers(single / "transformer")


def test_diffusers_makes_the_same_of_these_files(pair: Callable[[str], tuple[Path, Path]]) -> None:
    """Its converters on our tiny files, values and all: what stands in other names, rows or orders."""

    def published(layout: str) -> dict[str, Tensor]:
        return load_file(pair(layout)[1] / "model.safetensors")

    def assert_is(converted: dict[str, Tensor], folder: Path, part: str, layout: str) -> None:
        state = load_part(folder, part, layout).state_dict()
        assert converted.keys() == state.keys()
        assert all(torch.equal(converted[name], state[name]) for name in state)

    folder, config = pair("sdxl")[1], read_json
    assert_is(
        convert_ldm_unet_checkpoint(published("sdxl"), config(folder / "unet/config.json")), folder, "unet", "sdxl"
    )
    assert_is(convert_ldm_vae_checkpoint(published("sdxl"), config(folder / "vae/config.json")), folder, "vae", "sdxl")
    tower = load_part(folder, "text_encoder_2", "sdxl")
    prefix = "conditioner.embedders.1.model."
    converted = convert_open_clip_checkpoint(tower, published("sdxl"), prefix=prefix)
    assert_is(converted, folder, "text_encoder_2", "sdxl")
    sd3 = pair("sd3")[1]
    assert_is(convert_sd3_transformer_checkpoint_to_diffusers(published("sd3")), sd3, "transformer", "sd3")


@pytest.fixture
def single(pair: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> Path:
    """A copy of an SDXL as single file, which a test may break."""
    shutil.copytree(pair("sdxl")[1], tmp_path / "single")
    return tmp_path / "single"


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(CONV_IN), r"missing keys \['conv_in.weight'\]"),
        (
            lambda s: s.update({"model.diffusion_model.extra": torch.zeros(1)}),
            "unexpected keys .*diffusion_model.extra",
        ),
        (lambda s: s.update({"lora_unet.x": torch.zeros(1)}), "unexpected keys .*lora_unet.x"),
        (lambda s: s.update({CONV_IN: s[CONV_IN][:-1].clone()}), "shapes differ .*input_blocks.0.0.weight"),
        (lambda s: s.update({CONV_IN: s[CONV_IN].long()}), "input_blocks.0.0.weight is I64, expected one of F64"),
        (lambda s: [s.pop(key) for key in list(s) if "embedders" in key], None),
    ],
)
def test_a_single_file_is_read_as_strictly_as_a_folder(
    single: Path, change: Callable[[dict[str, Tensor]], object], message: str | None
) -> None:
    rewrite(single / "model.safetensors", change)
    if message is None:  # without its encoders it is a file of latent diffusion, with the same UNet
        load_unet(single)
        with pytest.raises(ValueError, match="layout 'latent-diffusion', which has no text_encoder"):
            load_encoder(CLIPTextModel, single / "text_encoder")
        return
    with pytest.raises(ValueError, match=message):
        load_unet(single)


@pytest.mark.parametrize(
    "key",
    [
        "model_ema.diffusion_modelinput_blocks00weight",
        "alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_mean_coef1",
        "denoiser.sigmas",
        "conditioner.embedders.1.model.logit_scale",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    ],
)
def test_what_training_leaves_in_files_is_passed_over(single: Path, key: str) -> None:
    rewrite(single / "model.safetensors", lambda state: state.update({key: torch.zeros(2)}))
    load_unet(single)
    load_encoder(CLIPTextModel, single / "text_encoder")
    load_encoder(CLIPTextModelWithProjection, single / "text_encoder_2")


@pytest.mark.parametrize(("scale", "fits"), [(0.18215, True), (0.2, False)])
def test_the_scale_that_training_measured_is_the_configs(single: Path, scale: float, fits: bool) -> None:
    """Latent diffusion's models of unit variance have their scale in the file, and nowhere else."""
    config = read_json(single / "vae" / "config.json")
    (single / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.18215}))
    rewrite(single / "model.safetensors", lambda state: state.update({"scale_factor": torch.tensor(scale)}))
    if fits:
        assert load_vae(single).spec.scaling_factor == 0.18215
        return
    with pytest.raises(ValueError, match=r"scaling_factor=0.18215, but the weights were trained with 0.2"):
        load_vae(single)


def test_the_last_layer_that_stable_diffusion_2_does_not_use(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    shutil.copytree(pair("sd2")[1], tmp_path, dirs_exist_ok=True)
    surplus = "cond_stage_model.model.transformer.resblocks.{}.ln_1.weight"
    rewrite(tmp_path / "model.safetensors", lambda state: state.update({surplus.format(3): torch.zeros(24)}))
    load_encoder(CLIPTextModel, tmp_path / "text_encoder")
    rewrite(tmp_path / "model.safetensors", lambda state: state.update({surplus.format(4): torch.zeros(24)}))
    with pytest.raises(ValueError, match="unexpected keys .*resblocks.4"):
        load_encoder(CLIPTextModel, tmp_path / "text_encoder")


def test_an_archive_of_training_is_read_where_it_holds_tensors_alone(single: Path) -> None:
    expected = load_unet(single).state_dict()
    state = load_file(single / "model.safetensors")
    (single / "model.safetensors").unlink()
    torch.save({"state_dict": state, "global_step": 7}, single / "model.ckpt")
    unet = load_unet(single, torch.bfloat16)
    assert all(torch.equal(t, expected[name].bfloat16()) for name, t in unet.state_dict().items())


def test_latent_diffusions_own_archive(tmp_path: Path) -> None:
    """A network conditioned on a class, and its vector-quantised autoencoder, as its authors published them."""
    options = {"block_out_channels": (16, 24), "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 1}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        in_channels=3, out_channels=3, down_block_types=down, up_block_types=up, cross_attention_dim=12, **options
    )
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vq = VQModel(block_out_channels=(16, 24), norm_num_groups=8, num_vq_embeddings=20, **levels)
    randomise(unet, 1).save_pretrained(tmp_path / "folder" / "unet")
    randomise(vq, 2).save_pretrained(tmp_path / "folder" / "vqvae")
    shutil.copytree(tmp_path / "folder", tmp_path / "own", ignore=shutil.ignore_patterns("*.safetensors"))
    layout, state = LAYOUT["latent-diffusion"], {}
    for part in ("unet", "vqvae"):
        state |= published_part(tmp_path / "folder" / part, layout, part)
    state |= {"cond_stage_model.embedding.weight": torch.zeros(11, 12), "model_ema.decay": torch.tensor(0.5)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "own" / "model.ckpt")
    for load in (load_unet, load_vq):
        expected, network = load(tmp_path / "folder").state_dict(), load(tmp_path / "own")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_latent_diffusions_own_archive_of_a_network_without_a_context(tmp_path: Path) -> None:
    """What enlarges pictures: attention over pixels, its queries, keys and values one matrix in the archive."""
    unet = UNet2DModel(
        in_channels=6,
        block_out_channels=(16, 24),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    randomise(unet, 1).save_pretrained(tmp_path / "folder" / "unet")
    shutil.copytree(tmp_path / "folder", tmp_path / "own", ignore=shutil.ignore_patterns("*.safetensors"))
    state = published_part(tmp_path / "folder" / "unet", LAYOUT["latent-diffusion"], "unet")
    state = {key: tensor[..., None] if ".qkv.w" in key else tensor for key, tensor in state.items()}
    torch.save({"state_dict": state}, tmp_path / "own" / "model.ckpt")
    expected = load_unet(tmp_path / "folder").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_unet(tmp_path / "own").state_dict().items())
    assert "model.diffusion_model.middle_block.1.qkv.bias" in state
    state.pop("model.diffusion_model.middle_block.1.qkv.bias")
    torch.save({"state_dict": state}, tmp_path / "own" / "model.ckpt")
    with pytest.raises(ValueError, match="missing keys .*mid_block.attentions.0.to_k.bias"):
        load_unet(tmp_path / "own")


def test_where_weights_are_looked_for(single: Path, pair: Callable[[str], tuple[Path, Path]]) -> None:
    shutil.copytree(pair("sdxl")[0] / "unet", single / "unet", dirs_exist_ok=True)
    assert weight_files(single / "unet")[0].parent == single / "unet"  # its own win
    assert weight_files(single / "vae") == [single / "model.safetensors"]
    shutil.copy(single / "model.safetensors", single / "another.safetensors")
    with pytest.raises(ValueError, match="several single files, another.safetensors, model.safetensors; keep one"):
        weight_files(single / "vae")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "JSON object"),
        ("{}", "no weight_map"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {"a": "../../secret.safetensors"}}, "secret.safetensors.*in the same folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "/etc/passwd.*in the same folder"),
        ({"weight_map": {"a": "x.bin"}}, "x.bin.*expected .safetensors"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is missing"),
    ],
)
def test_an_index_that_makes_no_sense(single: Path, index: str | dict[str, object], message: str) -> None:
    text = index if isinstance(index, str) else json.dumps(index)
    (single / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_unet(single)
