"""Picture to video with Stable Video Diffusion (Blattmann et al. 2023): prepare -> rows -> advance -> decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.conditioners.condition import TowerOf, on_torch
from models.conditioners.video import SVDConditioner
from models.families.row import Denoiser, Row, advance, start
from models.families.text_to_image import CPU, moments_of, to_uint8
from models.guidance import Guidance
from models.plan import Plan, make_plan
from models.schedule import Schedule
from models.spec.model import ModelSpec
from models.spec.unet import read_unet_spec
from models.spec.vae import TemporalVAESpec, read_temporal_vae_spec
from models.temporal_decoder import decode_in_chunks
from models.tiling import tiled_decode, tiled_encode
from models.weights import load_temporal_vae, load_unet

ClipDecoder = Callable[[Tensor, int], Tensor]
"""(latents [1, T, C, h, w], frames a chunk) -> pictures [1, T, 3, H, W] in about [-1, 1]."""
Encoder = Callable[[Tensor], Tensor]
"""pictures [B, 3, H, W] in [-1, 1] -> the posterior's mean [B, C, h, w], *unscaled*, as the network was trained."""


@dataclass(frozen=True)
class Motion:
    """The knobs of a clip (section 4 and appendix D of the paper)."""

    fps: int = 7
    bucket: int = 127
    """How much moves, 0 to 255."""
    noise_aug: float = 0.02
    """Standard deviation of the noise on the input picture; more frees the clip from it."""


@dataclass(frozen=True)
class ImageToVideoModel:
    """Everything that one model needs to make clips. The networks may be engines."""

    spec: ModelSpec
    schedule: Schedule
    conditioner: SVDConditioner
    denoisers: Mapping[str, Denoiser]
    decoder: ClipDecoder
    encoder: Encoder
    latent_channels: int
    downscale: int
    device: torch.device = CPU
    """Where its networks run and its rows live."""


def load(folder: Path) -> ImageToVideoModel:
    """A model from a diffusers folder, with torch networks in fp32.

    Raises:
        ValueError: the folder is not one, or its weights do not fit its configs.
    """
    vae = load_temporal_vae(folder)
    decoder, encoder = decoder_of(vae.spec, vae.decode_chunk), encoder_of(vae.spec, partial(moments_of, vae))
    return load_with(folder, load_conditioner(folder), {"unet": load_unet(folder)}, decoder, encoder)


def load_with(
    folder: Path,
    conditioner: SVDConditioner,
    denoisers: Mapping[str, Denoiser],
    decoder: ClipDecoder,
    encoder: Encoder,
    device: torch.device = CPU,
) -> ImageToVideoModel:
    """As :func:`load`, with the given networks, which may be engines, all of them on ``device``."""
    spec, vae = ModelSpec.read(folder), read_temporal_vae_spec(folder)
    return ImageToVideoModel(
        spec=spec,
        schedule=Schedule.from_config(spec.scheduler_config),
        conditioner=conditioner,
        denoisers=denoisers,
        decoder=decoder,
        encoder=encoder,
        latent_channels=vae.latent_channels,
        downscale=vae.downscale,
        device=device,
    )


def load_conditioner(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU, tower_of: TowerOf = on_torch
) -> SVDConditioner:
    """The vision tower of a model's folder, or what is called in its place."""
    return SVDConditioner.load(folder, read_unet_spec(folder).time_id_dim, dtype, device, tower_of)


def decoder_of(spec: TemporalVAESpec, decode_chunk: Callable[[Tensor], Tensor]) -> ClipDecoder:
    """The decoder of whole clips made of one of chunks, in tiles where frames are large."""

    def decode(latents: Tensor, chunk: int) -> Tensor:
        return tiled_decode(lambda tile: decode_in_chunks(decode_chunk, tile, chunk), latents, spec.downscale)

    return decode


def encoder_of(spec: TemporalVAESpec, moments: Callable[[Tensor], Tensor]) -> Encoder:
    """The encoder that takes the mean of what ``moments`` says of the posterior, in tiles where pictures are large."""

    def encode(pictures: Tensor) -> Tensor:
        mean, _ = tiled_encode(moments, pictures, spec.downscale).float().chunk(2, dim=1)
        return mean

    return encode


@torch.inference_mode()
def start_row(model: ImageToVideoModel, plan: Plan, picture: Tensor, motion: Motion, seed: int) -> Row:
    """A row at line 0.

    The generator draws the noise on the input picture first and the first x then. The unconditional lane has a zero
    token and a zero picture, and the same micro-conditioning.

    Args:
        picture: fp32 [3, H, W] in [-1, 1], on the CPU; H and W multiples of the autoencoder's factor.

    Raises:
        ValueError: the picture has another shape.
    """
    if picture.dim() != 3 or len(picture) != 3 or any(side % model.downscale for side in picture.shape[1:]):
        raise ValueError(
            f"picture has shape {list(picture.shape)}, expected [3, H, W] of multiples of {model.downscale}"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, *picture.shape), generator=generator)
    latent = model.encoder((picture[None] + motion.noise_aug * noise).to(model.device))
    frames = latent.expand(model.spec.frames, -1, -1, -1)
    pair = model.conditioner.encode_pair(picture, motion.fps, motion.bucket, motion.noise_aug)
    positive, negative = (condition.to(model.device) for condition in pair)
    conditions = {"positive": positive.with_concat(frames), "negative": negative.with_concat(torch.zeros_like(frames))}
    return start(plan, conditions, generator, (model.spec.frames, model.latent_channels, *latent.shape[2:]))


def guidance(model: ImageToVideoModel, first: float = 1.0, last: float | None = None) -> Guidance:
    """Guidance that grows linearly over the frames, from ``first`` to ``last`` (the model's own when not given)."""
    return Guidance(model.spec.guidance if last is None else last, first, "linear", model.spec.frames)


@torch.inference_mode()
def decode(model: ImageToVideoModel, row: Row, chunk: int | None = None) -> NDArray[np.uint8]:
    """A finished row -> uint8 [T, H, W, 3].

    Args:
        chunk: frames decoded together, all when not given. It changes the pixels: a frame sees only its own chunk.
    """
    chunk = chunk or model.spec.frames
    chunks = [decode_frames(model, row, first, chunk) for first in range(0, len(row.state[0]), chunk)]
    return np.concatenate(chunks)


@torch.inference_mode()
def decode_frames(model: ImageToVideoModel, row: Row, first: int, count: int) -> NDArray[np.uint8]:
    """One chunk of a finished row, decoded together: uint8 [N, H, W, 3], N at most ``count`` frames from ``first``.

    Raises:
        ValueError: there is no frame ``first``, or ``count`` is below 1.
    """
    latents = row.state[:1, first : first + count]
    if not 0 <= first < len(row.state[0]) or count < 1:
        raise ValueError(f"{count} frames from {first}, of a clip of {len(row.state[0])}")
    return to_uint8(model.decoder(latents, count)[0])


def generate(
    model: ImageToVideoModel, picture: NDArray[np.uint8], seed: int, steps: int | None = None
) -> NDArray[np.uint8]:
    """A clip from a picture uint8 [H, W, 3], with the model's own defaults: uint8 [T, H, W, 3]."""
    plan = make_plan(model.schedule, model.spec.solver, steps or model.spec.steps, guidance(model))
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1.0
    row = start_row(model, plan, pixels, Motion(), seed)
    while not row.finished:
        advance(model.denoisers, [row])
    return decode(model, row)
