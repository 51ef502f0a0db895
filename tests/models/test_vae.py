"""The autoencoder against the published one, on redrawn weights and odd shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.spec.vae import VAESpec
from models.vae import VAE, VAEDecoder
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5
CONFIGS = {
    "two-levels": {"block_out_channels": (12, 20), "norm_num_groups": 1, "layers_per_block": 2},
    "four-levels": {"block_out_channels": (16, 24, 32, 40), "norm_num_groups": 8, "latent_channels": 3},
    "no-quant": {
        "block_out_channels": (16, 24),
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 16,
    },
    "no-mid-attention": {
        "block_out_channels": (6, 9, 12, 15),
        "norm_num_groups": 1,
        "mid_block_add_attention": False,
        "scaling_factor": 0.13025,
    },
    "half-quant": {"block_out_channels": (8, 16), "norm_num_groups": 8, "use_post_quant_conv": False},
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> AutoencoderKL:
    levels = len(request.param["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return randomise(AutoencoderKL(**blocks, **request.param), 1)


@pytest.fixture(scope="module")
def ours(published: AutoencoderKL) -> VAE:
    vae = VAE(VAESpec.from_config(published.config))
    vae.load_state_dict(published.state_dict(), strict=True)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Three pictures of 2 x 3 latents at four levels, 8 x 12 at two."""
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


@pytest.fixture(scope="module")
def latents(ours: VAE) -> Tensor:
    shape = (3, ours.spec.latent_channels, 3, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_moments(ours: VAE, published: AutoencoderKL, pictures: Tensor, relative: Relative) -> None:
    mean, log_variance = ours.moments(pictures)
    expected = published.encode(pictures).latent_dist
    assert expected.mean.std() > 0.2 and expected.logvar.std() > 0.2
    assert relative(mean, expected.mean) < TOLERANCE
    assert relative(log_variance, expected.logvar) < TOLERANCE


def test_encode_scales_the_mean_or_a_sample(
    ours: VAE, published: AutoencoderKL, pictures: Tensor, relative: Relative
) -> None:
    posterior = published.encode(pictures).latent_dist
    scale = published.config.scaling_factor
    sample = posterior.sample(torch.Generator().manual_seed(2))
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(2))
    assert relative(ours.encode(pictures), posterior.mean * scale) < TOLERANCE
    assert relative(ours.encode(pictures, noise), sample * scale) < TOLERANCE


def test_decode(ours: VAE, published: AutoencoderKL, latents: Tensor, relative: Relative) -> None:
    expected = published.decode(latents / published.config.scaling_factor).sample
    assert expected.std() > 0.2
    result = ours.decode(latents)
    assert result.shape == (3, 3, 3 * ours.spec.downscale, 5 * ours.spec.downscale)
    assert relative(result, expected) < TOLERANCE
    assert torch.equal(VAEDecoder(ours)(latents), result)
    assert relative(ours.decode(latents.roll(1, dims=0)), expected) > 0.1  # a control: latents matter


def test_log_variance_is_clamped_as_published() -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    published = randomise(AutoencoderKL(**blocks, block_out_channels=(8,), norm_num_groups=2, latent_channels=1), 3)
    published.quant_conv.weight.data *= 100.0
    ours = VAE(VAESpec.from_config(published.config)).eval()
    ours.load_state_dict(published.state_dict(), strict=True)
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, log_variance = ours.moments(pictures)
        expected = published.encode(pictures).latent_dist.logvar
    assert expected.min() == -30.0 and expected.max() == 20.0
    torch.testing.assert_close(log_variance, expected, rtol=1e-4, atol=1e-4)
