"""Tiles against the published tiling, and what must hold for pictures of any size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.spec.vae import VAESpec
from models.tiling import TILE, tiled_decode, tiled_encode
from models.vae import VAE
from tests.support.tiny_xl import VAE as CONFIG
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
DOWNSCALE, TILE_LATENTS = 2, 8
PIXELS = DOWNSCALE * TILE_LATENTS


@pytest.fixture(scope="module")
def published() -> AutoencoderKL:
    vae = randomise(AutoencoderKL(**CONFIG), 1)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = PIXELS, TILE_LATENTS
    return vae


@pytest.fixture(scope="module")
def ours(published: AutoencoderKL) -> VAE:
    vae = VAE(VAESpec.from_config(published.config))
    vae.load_state_dict(published.state_dict(), strict=True)
    return vae.eval().requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def upsample(x: Tensor) -> Tensor:
    """A decoder that sees no neighbours, so that tiles change nothing."""
    return x.repeat_interleave(DOWNSCALE, dim=-1).repeat_interleave(DOWNSCALE, dim=-2)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (5, 21), (20, 13)])
def test_decode_as_published(ours: VAE, published: AutoencoderKL, height: int, width: int, relative: Relative) -> None:
    latents = drawn(2, 4, height, width)
    expected = published.decode(latents / published.config.scaling_factor).sample
    result = tiled_decode(ours.decode, latents, DOWNSCALE, PIXELS)
    assert relative(result, expected) < 1e-5
    assert relative(ours.decode(latents), expected) > 0.01  # a control: tiles do change the picture


@pytest.mark.parametrize(("height", "width"), [(18, 16), (40, 26)])
def test_encode_as_published(ours: VAE, published: AutoencoderKL, height: int, width: int, relative: Relative) -> None:
    pictures = drawn(2, 3, height, width)
    expected = published.encode(pictures).latent_dist.mean
    assert relative(tiled_encode(ours.encode_unscaled, pictures, DOWNSCALE, PIXELS), expected) < 1e-5
    assert relative(ours.encode_unscaled(pictures), expected) > 0.01


def test_a_picture_that_fits_is_not_cut() -> None:
    calls: list[tuple[int, ...]] = []

    def decode(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return upsample(x)

    latents = drawn(1, 1, TILE // DOWNSCALE, TILE // DOWNSCALE)
    assert torch.equal(tiled_decode(decode, latents, DOWNSCALE), upsample(latents))
    assert calls == [tuple(latents.shape)]
    calls.clear()
    tiled_decode(decode, drawn(1, 1, TILE // DOWNSCALE + 1, 2), DOWNSCALE)
    assert calls == [(1, 1, 512, 2), (1, 1, 129, 2)]


@given(st.integers(1, 30), st.integers(1, 30))
def test_tiles_make_one_picture_of_the_right_size(height: int, width: int) -> None:
    latents = drawn(1, 2, 1, height, width)
    seen: list[int] = []

    def decode(x: Tensor) -> Tensor:
        seen.append(max(x.shape[-2:]))
        return upsample(x)

    result = tiled_decode(decode, latents, DOWNSCALE, PIXELS)
    torch.testing.assert_close(result, upsample(latents))
    assert max(seen) <= TILE_LATENTS
    pictures = upsample(latents)
    torch.testing.assert_close(tiled_encode(lambda x: x[..., ::2, ::2], pictures, DOWNSCALE, PIXELS), latents)


def test_neighbouring_tiles_fade_into_each_other() -> None:
    """Every tile another grey: between two of them the picture is a straight ramp."""
    greys = iter([0.0, 1.0, 1.0])
    result = tiled_decode(lambda x: upsample(torch.full_like(x, next(greys))), drawn(1, 1, 2, 17), DOWNSCALE, PIXELS)
    line = result[0, 0, 0]
    step, fade = PIXELS * 3 // 4, PIXELS // 4
    torch.testing.assert_close(line[step : step + fade], torch.arange(fade) / fade)
    assert (line[:step] == 0.0).all() and (line[step + fade :] == 1.0).all()


@pytest.mark.parametrize("tile", [0, -16, 12, 20])
@pytest.mark.parametrize("code", [tiled_decode, tiled_encode])
def test_a_tile_that_does_not_divide_is_refused(code: Callable[..., Tensor], tile: int) -> None:
    with pytest.raises(ValueError, match=f"tile is {tile} pixels, expected a multiple of 8"):
        code(upsample, drawn(1, 1, 4, 4), DOWNSCALE, tile)


def test_a_large_decode_is_interpolated_only_where_tiles_meet() -> None:
    """Neighbours that a tile cuts off are missed at its border alone."""
    latents = drawn(1, 1, 4, 24)
    kernel = torch.ones(1, 1, 3, 3) / 9.0

    def decode(x: Tensor) -> Tensor:
        return upsample(F.conv2d(x, kernel, padding=1))

    whole, tiles = decode(latents), tiled_decode(decode, latents, DOWNSCALE, PIXELS)
    wrong = (whole - tiles).abs().amax(dim=(0, 1, 2)) > 1e-6
    step, fade = PIXELS * 3 // 4, PIXELS // 4
    assert wrong.any()
    assert {int(x) // step * step for x in wrong.nonzero()[:, 0] if int(x) % step < fade} == {12, 24, 36}
    assert not wrong[:step].any() and all(int(x) % step < fade for x in wrong.nonzero()[:, 0])
