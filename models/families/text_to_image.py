"""Text to picture with Stable Diffusion 1.x and 2.x, SDXL, its Turbo and Stable Diffusion 3: prepare -> rows ->
advance -> decode. From a picture (img2img) and into a picture (inpainting) only the start of the row differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.conditioners.condition import Condition, TowerOf, on_torch
from models.conditioners.nothing import NoConditioner
from models.conditioners.sd3 import SD3Conditioner
from models.conditioners.sdxl import SDXLConditioner, SDXLRefinerConditioner
from models.conditioners.stable_diffusion import StableDiffusionConditioner
from models.families.row import Denoiser, Row, advance, start
from models.guidance import SKIP_LAYERS, Guidance
from models.plan import Plan, make_plan
from models.schedule import Level, Schedule, noise_levels
from models.spec.model import ONE_TOWER, REFINER, ModelSpec
from models.spec.unet import read_unet_spec
from models.spec.vae import VAESpec, read_part_spec, read_vae_spec
from models.tiling import tiled_decode, tiled_encode
from models.vae import VAE, KLEncoder, to_network_scale
from models.weights import load_mmdit, load_part, load_tiny_decoder, load_unet

Decoder = Callable[[Tensor], Tensor]
"""latents [B, C, h, w] -> pictures [B, 3, H, W] in about [-1, 1]."""
Encoder = Callable[[Tensor, Tensor], Tensor]
"""(pictures [B, 3, H, W] in [-1, 1], noise [B, C, h, w]) -> latents: a sample of the posterior."""
SKIPPED_LAYERS = (7, 8, 9)
"""Joint blocks that the skip-layer variant leaves out, as published for SD3.5-medium."""

CPU = torch.device("cpu")

TextConditioner = StableDiffusionConditioner | SDXLConditioner | SDXLRefinerConditioner | SD3Conditioner | NoConditioner


@dataclass(frozen=True)
class TextToImageModel:
    """Everything that one model needs to make pictures. The networks may be engines."""

    spec: ModelSpec
    schedule: Schedule
    conditioner: TextConditioner
    denoisers: Mapping[str, Denoiser]
    """By the names of :func:`models.families.row.network_of`."""
    decoder: Decoder
    encoder: Encoder | None
    """None for a model that only draws from text."""
    latent_channels: int
    downscale: int
    fast_decoder: Decoder | None = None
    """A small decoder of lesser quality, where the folder has one in ``vae_tiny``."""
    refiner: TextConditioner | None = None
    """What conditions the network that takes over near the end, where there is one."""
    low_resolution: tuple[Level, ...] = ()
    """Of an upscaler that is told a noise level: the level at which its picture is noised."""
    device: torch.device = CPU
    """Where its networks run and its rows live."""


def load(folder: Path) -> TextToImageModel:
    """A model from a diffusers folder, with torch networks in fp32.

    Raises:
        ValueError: the folder is none of the systems named above, or its weights do not fit its configs.
    """
    vae = load_part(folder, ModelSpec.read(folder).system.autoencoder)
    encoder = encoder_of(vae.spec, partial(moments_of, vae)) if isinstance(vae, VAE) else None
    return load_with(folder, load_denoisers(folder), vae.decode, encoder)


def moments_of(vae: KLEncoder, pictures: Tensor) -> Tensor:
    """Mean and log-variance of the posterior of pictures [B, 3, H, W], one behind the other: [B, 2 * C, h, w]."""
    return torch.cat(vae.moments(pictures), dim=1)


def encoder_of(spec: VAESpec, moments: Callable[[Tensor], Tensor]) -> Encoder:
    """The encoder that draws from what ``moments`` says of the posterior, in tiles where pictures are large."""

    def encode(pictures: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = tiled_encode(moments, pictures, spec.downscale).float().chunk(2, dim=1)
        return to_network_scale(mean + torch.exp(0.5 * log_variance) * noise, spec)

    return encode


def load_denoisers(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Mapping[str, Denoiser]:
    """The folder's denoising network with its variants, and the refiner that takes over from it."""
    spec = ModelSpec.read(folder)
    if spec.system.denoiser == "unet":
        networks: dict[str, Denoiser] = {"unet": load_unet(folder, dtype, device)}
        if spec.refiner is not None:
            networks[REFINER] = load_unet(spec.refiner, dtype, device)
        return networks
    mmdit = load_mmdit(folder, dtype, device)
    if mmdit.spec.depth <= max(SKIPPED_LAYERS):
        return {"transformer": mmdit}
    return {"transformer": mmdit, f"transformer/{SKIP_LAYERS}": mmdit.skipping(SKIPPED_LAYERS)}


def load_with(
    folder: Path,
    denoisers: Mapping[str, Denoiser],
    decoder: Decoder,
    encoder: Encoder | None = None,
    conditioner: TextConditioner | None = None,
    fast_decoder: Decoder | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> TextToImageModel:
    """As :func:`load`, with the given networks, which may be engines, in place of the folder's own.

    A conditioner and a fast decoder that are not given are loaded in ``dtype``, an encoder is not. All networks are on
    ``device``.
    """
    spec = ModelSpec.read(folder)
    vae = read_part_spec(folder, spec.system.autoencoder)
    if fast_decoder is None and (tiny := folder / "vae_tiny").is_dir():
        fast_decoder = load_tiny_decoder(tiny, dtype, device).decode
    return TextToImageModel(
        spec=spec,
        schedule=Schedule.from_config(spec.scheduler_config),
        conditioner=conditioner or load_conditioner(spec, dtype, device),
        denoisers=denoisers,
        decoder=lambda latents: tiled_decode(decoder, latents, vae.downscale),
        encoder=encoder,
        latent_channels=vae.latent_channels,
        downscale=vae.downscale,
        fast_decoder=fast_decoder,
        refiner=load_refiner_conditioner(spec, dtype, device),
        low_resolution=_low_resolution(spec),
        device=device,
    )


def _low_resolution(spec: ModelSpec) -> tuple[Level, ...]:
    config = {} if spec.upscaling is None else spec.upscaling.scheduler_config
    return noise_levels(config) if config else ()


def load_conditioner(
    spec: ModelSpec,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    eight_bit_t5: bool = False,
    tower_of: TowerOf = on_torch,
) -> TextConditioner:
    """The text encoders of a model's folder, or what is called in place of them. T5, whose activations exceed the range
    of fp16, is bf16 in its place, and may have most of its weights in 8 bits."""
    if spec.pipeline == "StableDiffusion3Pipeline":
        t5_dtype = torch.bfloat16 if dtype == torch.float16 else dtype
        return SD3Conditioner.load(spec.folder, None, dtype, t5_dtype, device, eight_bit_t5, tower_of)
    if not spec.system.reads_text:
        return NoConditioner()
    if spec.pipeline in ONE_TOWER:
        return StableDiffusionConditioner.load(spec.folder, dtype, device, tower_of)
    unet = read_unet_spec(spec.folder)
    if spec.needs == "picture":
        return SDXLRefinerConditioner.load(spec.folder, unet, dtype, device, tower_of)
    return SDXLConditioner.load(spec.folder, unet, spec.zeros_for_empty_prompt, dtype, device, tower_of)


def load_refiner_conditioner(
    spec: ModelSpec, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> TextConditioner | None:
    """What conditions the refiner of a model, if it has one.

    Raises:
        ValueError: its folder is no refiner, or its latents are not those of the base.
    """
    if spec.refiner is None:
        return None
    refiner, base, other = ModelSpec.read(spec.refiner), read_vae_spec(spec.folder), read_vae_spec(spec.refiner)
    if refiner.needs != "picture":
        raise ValueError(f"refiner {refiner.name!r} of {spec.name!r} is no refiner: it takes no aesthetic score")
    if (base.latent_channels, base.scaling_factor) != (other.latent_channels, other.scaling_factor):
        raise ValueError(f"refiner {refiner.name!r} has other latents than {spec.name!r}")
    return load_conditioner(refiner, dtype, device)


def prepare(
    model: TextToImageModel, prompt: str, negative_prompt: str, guided: bool, width: int, height: int
) -> dict[str, Condition]:
    """The conditions of a row by name, where the model is; a row that is not ``guided`` needs no negative one."""
    conditions: dict[str, Condition] = {}
    for prefix, conditioner in (("", model.conditioner), (f"{REFINER}/", model.refiner)):
        if conditioner is None:
            continue
        if guided:
            positive, negative = conditioner.encode_pair(prompt, negative_prompt, width, height)
            conditions |= {f"{prefix}positive": positive, f"{prefix}negative": negative}
        else:
            conditions[f"{prefix}positive"] = conditioner.encode(prompt, width, height)
    return {name: condition.to(model.device) for name, condition in conditions.items()}


@torch.inference_mode()
def start_row(
    model: TextToImageModel,
    plan: Plan,
    conditions: Mapping[str, Condition],
    seed: int,
    size: tuple[int, int],
    picture: Tensor | None = None,
    mask: Tensor | None = None,
) -> Row:
    """A row at line 0.

    Args:
        conditions: where the model is.
        size: width and height in pixels, multiples of ``model.downscale``.
        picture: fp32 [3, H, W] in [-1, 1] of that size, to begin from (a plan made with ``from_picture``) or to paint
            into. It and the mask may be on any device.
        mask: [1, H, W], 1 where the row may paint and 0 where the picture stays.

    Raises:
        ValueError: a side of ``size`` is no such multiple, the picture or mask has another shape, the plan or mask
            needs a picture and there is none, the model was loaded without an encoder or needs what is not given, or it
            is an upscaler, whose rows :func:`models.families.upscaling.start_row` begins.
    """
    width, height = size
    masked = model.spec.needs == "picture and mask"
    if model.spec.upscaling or (model.spec.needs and picture is None) or (masked and mask is None):
        raise ValueError(f"model {model.spec.name!r} needs a {model.spec.needs}")
    if width % model.downscale or height % model.downscale:
        raise ValueError(f"size is {width}x{height} pixels, expected multiples of {model.downscale}")
    generator = torch.Generator().manual_seed(seed)
    shape = (model.latent_channels, height // model.downscale, width // model.downscale)
    if picture is None:
        return start(plan, conditions, generator, shape, mask=mask)
    if model.encoder is None:
        raise ValueError(f"model {model.spec.name!r} was loaded without its encoder and takes no picture")
    for name, given, channels in (("picture", picture, 3), ("mask", mask, 1)):
        if given is not None and given.shape != (channels, height, width):
            raise ValueError(f"{name} has shape {list(given.shape)}, expected {[channels, height, width]}")
    picture = picture.to(model.device)
    z = model.encoder(picture[None], torch.randn((1, *shape), generator=generator).to(model.device))[0]
    if mask is None:
        return start(plan, conditions, generator, shape, z)
    hard = (mask[None].to(model.device) >= 0.5).float()
    small = F.interpolate(hard, shape[1:])[0]
    if not masked:
        return start(plan, conditions, generator, shape, z, small)
    noise = torch.randn((1, *shape), generator=generator).to(model.device)
    kept = model.encoder(picture[None] * (1.0 - hard), noise)[0]
    concat = torch.cat([small, kept])
    return start(plan, {k: c.with_concat(concat) for k, c in conditions.items()}, generator, shape, z)


def decode(decoder: Decoder, rows: Sequence[Row]) -> NDArray[np.uint8]:
    """Finished rows -> uint8 [B, H, W, 3]."""
    return decode_latents(decoder, torch.stack([row.state[0] for row in rows]))


@torch.inference_mode()
def decode_latents(decoder: Decoder, latents: Tensor) -> NDArray[np.uint8]:
    """[B, C, h, w] in the network's scale -> uint8 [B, H, W, 3]."""
    return to_uint8(decoder(latents))


def to_uint8(pictures: Tensor) -> NDArray[np.uint8]:
    """[..., 3, H, W] in about [-1, 1], in any real dtype and on any device -> uint8 [..., H, W, 3]."""
    levels = (pictures.float().clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0
    array: NDArray[np.uint8] = levels.round().to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()
    return array


def generate(model: TextToImageModel, prompt: str, seed: int, steps: int | None = None) -> NDArray[np.uint8]:
    """One picture with the model's own defaults: uint8 [H, W, 3]. The ten lines that show how the stages meet."""
    spec, guidance = model.spec, Guidance(model.spec.guidance)
    network, refiner = spec.system.denoiser, spec.hand_over
    plan = make_plan(model.schedule, spec.solver, steps or spec.steps, guidance, network=network, refiner=refiner)
    conditions = prepare(model, prompt, "", guidance.scale > 1.0, *spec.sizes[0])
    row = start_row(model, plan, conditions, seed, spec.sizes[0])
    while not row.finished:
        advance(model.denoisers, [row])
    picture: NDArray[np.uint8] = decode(model.decoder, [row])[0]
    return picture
