"""Stable Video Diffusion's token and vector against ``StableVideoDiffusionPipeline``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from PIL import Image
from torch import Tensor

from models.conditioners.video import SVDConditioner, resize_antialiased
from tests.support.tiny_towers import POOLED

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-6
DIM = 8


@pytest.fixture(scope="module")
def conditioner(svd_folder: Path) -> SVDConditioner:
    return SVDConditioner.load(svd_folder, DIM)


@pytest.fixture(scope="module")
def published_svd(svd_folder: Path) -> StableVideoDiffusionPipeline:
    return StableVideoDiffusionPipeline.from_pretrained(svd_folder)


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: no picture has more to lose in a resize."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_bytes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(300, 500), (64, 48), (224, 224), (2, 230), (1000, 225)])
def test_resize(size: tuple[int, int], relative: Relative) -> None:
    pictures = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    expected = _resize_with_antialiasing(pictures, (224, 224))
    assert relative(resize_antialiased(pictures, 224, 224), expected) < TOLERANCE
    if max(size) > 2 * 224:  # a control: without the blur
        plain = F.interpolate(pictures, size=(224, 224), mode="bicubic", align_corners=True)
        assert relative(plain, expected) > 0.5


@pytest.mark.parametrize("size", [(48, 32), (500, 300)], ids=["enlarged", "reduced"])
def test_token(conditioner: SVDConditioner, published_svd, relative: Relative, size: tuple[int, int]) -> None:
    picture = drawn(*size)
    with torch.inference_mode():
        null, expected = published_svd._encode_image(picture, "cpu", 1, True)
    condition = conditioner.encode(as_bytes(picture))
    assert condition.context.shape == (1, POOLED) and condition.concat is None
    assert relative(condition.context, expected) < TOLERANCE
    positive, negative = conditioner.encode_pair(as_bytes(picture))
    assert torch.equal(positive.context, condition.context)
    assert torch.equal(negative.context, null) and not null.any()
    assert torch.equal(negative.vector, positive.vector)
    assert relative(conditioner.encode(as_bytes(drawn(*size, seed=1))).context, expected) > 0.01


def test_bytes_and_real_numbers_mean_the_same(conditioner: SVDConditioner, relative: Relative) -> None:
    pixels = as_bytes(drawn(48, 32))
    signed = pixels.double() / 127.5 - 1.0
    expected = conditioner.encode(pixels).context
    for dtype in (torch.float32, torch.float64):
        assert relative(conditioner.encode(signed.to(dtype)).context, expected) < 1e-5
    assert relative(conditioner.encode(signed / 2.0 + 0.5).context, expected) > 1e-2  # a control: [0, 1]


@pytest.mark.parametrize("numbers", [(7, 127, 0.02), (25, 30, 0.1)])
def test_vector(
    conditioner: SVDConditioner, published_svd, numbers: tuple[int, int, float], relative: Relative
) -> None:
    fps, motion, noise = numbers
    ids = published_svd._get_add_time_ids(fps - 1, motion, noise, torch.float32, 1, 1, False)
    expected = published_svd.unet.add_time_proj(ids.flatten()).flatten()
    picture = as_bytes(drawn(48, 32))
    vector = conditioner.encode(picture, fps, motion, noise).vector
    assert torch.equal(vector, expected)
    if numbers == (7, 127, 0.02):
        assert torch.equal(conditioner.encode(picture).vector, expected)
    for wrong in ((fps + 1, motion, noise), (motion, fps, noise), (fps, motion, 2 * noise)):
        assert relative(conditioner.encode(picture, *wrong).vector, expected) > 1e-2


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (3, 1, 8), (3, 8)])
def test_what_is_no_picture(conditioner: SVDConditioner, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"picture has shape .* expected \[3, H, W\]"):
        conditioner.encode(torch.zeros(shape))


def test_a_narrow_tower_answers_in_fp32(svd_folder: Path, conditioner, relative: Relative) -> None:
    picture = as_bytes(drawn(48, 32))
    narrow = SVDConditioner.load(svd_folder, DIM, torch.bfloat16).encode(picture)
    assert narrow.context.dtype == torch.float32
    assert 1e-4 < relative(narrow.context, conditioner.encode(picture).context) < 0.1
