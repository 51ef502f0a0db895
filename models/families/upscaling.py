"""A picture to a larger one with the x4 upscaler of Stable Diffusion, or latent diffusion's: prepare -> rows -> advance
-> decode, as for text to picture. Only the start of the row differs.

The network works on a latent of the given picture's size and sees the picture behind it. The picture is noised before,
to a level that the network is told (conditioning augmentation, Ho et al. 2022, Cascaded Diffusion Models, section 4):
the more noise, the freer it is to invent. Latent diffusion's own network (Rombach et al. 2022, section 4.4) sees the
picture as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioners.condition import Condition
from models.families.row import Row, start
from models.families.text_to_image import TextToImageModel
from models.plan import Plan
from models.spec.model import PICTURE_CHANNELS


@torch.inference_mode()
def start_row(
    model: TextToImageModel,
    plan: Plan,
    conditions: Mapping[str, Condition],
    seed: int,
    picture: Tensor,
    noise_level: int,
) -> Row:
    """A row at line 0. Its generator draws the picture's noise first, if it is noised at all, then the first x, as in
    the published pipelines.

    Args:
        conditions: of ``text_to_image.prepare``, where the model is.
        picture: fp32 [3, h, w] in [-1, 1], on any device. Its last row and column are repeated until the network can
            halve both sides, so the decoded picture may be larger than ``factor`` times this one; the rest is at its
            right and lower edge.
        noise_level: 0 to ``model.spec.upscaling.max_noise_level``.

    Raises:
        ValueError: the model is no upscaler, the picture has another shape, or the noise level is none of these.
    """
    upscaling = model.spec.upscaling
    if upscaling is None:
        raise ValueError(f"model {model.spec.name!r} is no upscaler")
    if picture.dim() != 3 or len(picture) != PICTURE_CHANNELS:
        raise ValueError(f"picture has shape {list(picture.shape)}, expected [{PICTURE_CHANNELS}, h, w]")
    if not 0 <= noise_level <= upscaling.max_noise_level:
        raise ValueError(f"noise_level is {noise_level}, expected 0 to {upscaling.max_noise_level}")
    height, width = picture.shape[1:]
    rest = (0, -width % upscaling.multiple, 0, -height % upscaling.multiple)
    padded = F.pad(picture.to(model.device), rest, mode="replicate")
    generator = torch.Generator().manual_seed(seed)
    shape = (model.latent_channels, *padded.shape[1:])
    if not model.low_resolution:
        return start(plan, {name: each.with_concat(padded) for name, each in conditions.items()}, generator, shape)
    noise = torch.randn((1, *padded.shape), generator=generator)[0].to(model.device)
    alpha, sigma = model.low_resolution[noise_level]
    shown = alpha * padded + sigma * noise
    told = torch.tensor([float(noise_level)]).to(model.device)
    seeing = {name: replace(each, vector=told).with_concat(shown) for name, each in conditions.items()}
    return start(plan, seeing, generator, shape)
