"""Published checkpoints to networks and back: folders as diffusers writes them, and single files; strict keys.

A network gets its dtype and device here and keeps them: it may be shared by many requests.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoints.ldm import LdmUNetNames, LdmVaeNames
from models.checkpoints.sd3 import SD3Names
from models.checkpoints.single_file import UNET, VAE_ENCODER_OF_CLIPS
from models.checkpoints.single_file import VAE as FIRST_STAGE
from models.checkpoints.source import Naming, Source, below, own_names
from models.checkpoints.stored import Namings, Stored, find_stored
from models.checkpoints.stored import weight_files as weight_files
from models.layout import channels_last
from models.mmdit import MMDiT
from models.spec.config import reading
from models.spec.mmdit import read_mmdit_spec
from models.spec.unet import read_unet_spec
from models.spec.vae import AutoencoderSpec, read_temporal_vae_spec, read_tiny_spec, read_vae_spec, read_vq_spec
from models.temporal_decoder import TemporalDecoderVAE
from models.tiny_autoencoder import TinyAutoencoder
from models.unet import UNet
from models.vae import VAE
from models.vq import VQ

N = TypeVar("N", bound=nn.Module)
Device = torch.device | str

WEIGHTS = "diffusion_pytorch_model.safetensors"
FP16_WEIGHTS = "diffusion_pytorch_model.fp16.safetensors"

SCALE_TOLERANCE = 1e-3
"""Configs round the scale of latents to four digits."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention over pixels in checkpoints of 2022, which are still published, and their names since."""
_PRESENT_ATTENTION = {present: old for old, present in OLD_ATTENTION.items()}
_ATTENTION_KEY = re.compile(rf"(.+\.attentions\.\d+)\.({'|'.join(_PRESENT_ATTENTION)})\.(weight|bias)")


def load_unet(folder: Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> UNet:
    """The network of ``folder/unet`` in ``dtype``, in evaluation mode; its weights from there, or from the single file
    that lies in ``folder``. On a GPU they lie as :func:`models.layout.channels_last` puts them.

    Raises:
        ValueError: a file is missing or damaged, or keys or shapes do not match its config to the letter.
    """
    return _loaded(lambda: UNet(read_unet_spec(folder)), folder / "unet", dtype, device)


def load_mmdit(folder: Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> MMDiT:
    """The network of ``folder/transformer``; as :func:`load_unet`."""
    return _loaded(lambda: MMDiT(read_mmdit_spec(folder)), folder / "transformer", dtype, device)


def load_vae(folder: Path, dtype: torch.dtype = torch.float32, part: str = "vae", device: Device = "cpu") -> VAE:
    """The autoencoder of ``folder/part``; as :func:`load_unet`.

    Raises:
        ValueError: as there, or fp16 is asked of weights that overflow in it.
    """
    spec = read_vae_spec(folder, part)
    return _loaded(lambda: VAE(spec), folder / part, _safe(dtype, spec), device)


def load_temporal_vae(
    folder: Path, dtype: torch.dtype = torch.float32, part: str = "vae", device: Device = "cpu"
) -> TemporalDecoderVAE:
    """The video autoencoder of ``folder/part``; as :func:`load_vae`."""
    spec = read_temporal_vae_spec(folder, part)
    return _loaded(lambda: TemporalDecoderVAE(spec), folder / part, _safe(dtype, spec), device)


def load_vq(folder: Path, dtype: torch.dtype = torch.float32, part: str = "vqvae", device: Device = "cpu") -> VQ:
    """The vector-quantised autoencoder of ``folder/part``; as :func:`load_vae`."""
    spec = read_vq_spec(folder, part)
    return _loaded(lambda: VQ(spec), folder / part, _safe(dtype, spec), device)


def load_part(folder: Path, part: str, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> VAE | VQ:
    """The autoencoder of pictures in ``folder/part``, which is ``vae`` or ``vqvae``; as :func:`load_vae`."""
    load: Callable[..., VAE | VQ] = load_vae if part == "vae" else load_vq
    return load(folder, dtype, part, device)


def load_tiny_decoder(folder: Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> TinyAutoencoder:
    """The distilled autoencoder in ``folder`` itself, as these are published; as :func:`load_vae`."""
    spec = read_tiny_spec(folder)
    return _loaded(lambda: TinyAutoencoder(spec), folder, _safe(dtype, spec), device)


def network_namings(network: nn.Module) -> Namings:
    """How published files call the parameters of one of the networks above, which may be on the meta device."""
    if isinstance(network, UNet):
        return _namings(below(UNET, LdmUNetNames(network.spec)), _present_or_old)
    if isinstance(network, MMDiT):
        return _namings(below(UNET, SD3Names(network.spec)))
    if isinstance(network, TemporalDecoderVAE):
        return _namings(_clip_vae_names(len(network.spec.block_out_channels)))
    if isinstance(network, VAE | VQ):
        return _namings(below(FIRST_STAGE, LdmVaeNames(len(network.spec.block_out_channels))), _present_or_old)
    return Namings(own_names)


def save_network(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write ``config.json`` and one safetensors file the way diffusers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _loaded(make: Callable[[], N], folder: Path, dtype: torch.dtype, device: Device) -> N:
    """Parameters are made without memory first, so that nothing is allocated for a config that its file does not
    fit, and then replaced by the stored ones, one at a time."""
    with reading(folder / "config.json"), torch.device("meta"):
        network = make()
    stored = find_stored(folder, network, network_namings(network))
    _check_scale(stored, network)
    state = {name: tensor.to(device, dtype) for name, tensor in stored.read(mapped=True)}
    network.load_state_dict(state, assign=True)
    if torch.device(device).type != "cpu":
        channels_last(network)
    network.eval().requires_grad_(False)
    return network


def _check_scale(stored: Stored, network: nn.Module) -> None:
    """With another scale than in training an autoencoder's latents are as wrong as with another layer."""
    spec = getattr(network, "spec", None)
    if not isinstance(spec, AutoencoderSpec) or stored.scale is None:
        return
    if not math.isclose(stored.scale, spec.scaling_factor, rel_tol=SCALE_TOLERANCE):
        raise ValueError(
            f"{stored.where}: config scaling_factor={spec.scaling_factor:g}, but the weights were trained with "
            f"{stored.scale:g}"
        )


def _safe(dtype: torch.dtype, spec: AutoencoderSpec) -> torch.dtype:
    if dtype == torch.float16 and spec.force_upcast:
        raise ValueError("dtype is float16, but these weights overflow in it (force_upcast); use float32 or bfloat16")
    return dtype


def _namings(in_single_file: Naming, in_folder: Naming = own_names) -> Namings:
    """Those of a network that is called the same in all single files."""
    return Namings(in_folder, lambda _layout, _part: in_single_file)


def _present_or_old(name: str) -> Sequence[Source]:
    if match := _ATTENTION_KEY.fullmatch(name):
        block, present, kind = match.groups()
        return (Source(name), Source(f"{block}.{_PRESENT_ATTENTION[present]}.{kind}"))
    return (Source(name),)


def _clip_vae_names(levels: int) -> Naming:
    """The temporal decoder, and the encoder that the picture of a clip passes, which lies apart from it."""
    names = LdmVaeNames(levels)
    decoder, encoder = below(FIRST_STAGE, names), below(VAE_ENCODER_OF_CLIPS, names)
    return lambda name: decoder(name) if name.startswith("decoder.") else encoder(name)
