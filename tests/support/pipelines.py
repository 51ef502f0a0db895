"""Published pipelines beside ours: how they are run, and how results are compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

SIZE = (48, 32)
"""Width and height."""
SEED = 5


class Made(NamedTuple):
    """Final latent, in the network's scale, and uint8 picture or clip."""

    latent: Tensor
    pixels: np.ndarray


def quiet(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def published(pipeline: DiffusionPipeline, **arguments: Any) -> Made:
    """Run a published pipeline and keep its last latent."""
    latents = []
    result = quiet(pipeline)(
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        callback_on_step_end=lambda _pipeline, _step, _time, state: latents.append(state["latents"]) or {},
        **arguments,
    )
    pixels = result.frames[0] if hasattr(result, "frames") else result.images[0]
    return Made(latents[-1][0], (np.asarray(pixels) * 255).round().astype(np.uint8))


def assert_same(ours: Made, theirs: Made) -> None:
    assert float((ours.latent - theirs.latent).norm() / theirs.latent.norm()) < 1e-4
    assert np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int)).max() <= 1


def assert_different(ours: Made, theirs: Made) -> None:
    assert float((ours.latent - theirs.latent).norm() / theirs.latent.norm()) > 1e-3


def a_picture() -> tuple[Image.Image, Tensor]:
    """A smooth picture for both sides."""
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] / 48.0
    levels = np.stack([rows, columns, 1.0 - rows * columns], -1) * 255
    pixels = levels.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0
