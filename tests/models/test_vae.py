"""The autoencoder against the published one, on redrawn weights and odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.spec.vae import VAESpec
from models.vae import VAE, VAEDecoder
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5
"""Of fp32; that of fp64 is five orders smaller."""
CONFIGS = {
    "two-levels": {"block_out_channels": (12, 20), "norm_num_groups": 1, "layers_per_block": 2},
    "four-levels": {"block_out_channels": (16, 24, 32, 40), "norm_num_groups": 8, "latent_channels": 3},
    "sd3": {
        "block_out_channels": (16, 24),
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "five-levels-with-attention": {
        "block_out_channels": (8, 8, 12, 12, 16),
        "norm_num_groups": 1,
        "latent_channels": 5,
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",) * 2,
        "up_block_types": ("AttnUpDecoderBlock2D",) * 2 + ("UpDecoderBlock2D",) * 3,
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
    return randomise(AutoencoderKL(**{**blocks, **request.param}), 1)


@pytest.fixture(scope="module")
def ours(published: AutoencoderKL) -> VAE:
    vae = VAE(VAESpec.from_config(published.config))
    vae.load_state_dict(published.state_dict(), strict=True)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Two pictures of 2 x 3 latents at five levels, 16 x 24 at two."""
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


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
    scale, shift = published.config.scaling_factor, published.config.shift_factor or 0.0
    sample = posterior.sample(torch.Generator().manual_seed(2))
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(2))
    assert relative(ours.encode(pictures), (posterior.mean - shift) * scale) < TOLERANCE
    assert relative(ours.encode(pictures, noise), (sample - shift) * scale) < TOLERANCE
    assert relative(ours.encode_unscaled(pictures), posterior.mode()) < TOLERANCE
    assert relative(ours.encode_unscaled(pictures), ours.encode(pictures)) > 0.01  # a control: the scale matters
    if shift:
        assert relative(ours.encode(pictures), posterior.mean * scale) > 0.01


def test_decode(ours: VAE, published: AutoencoderKL, latents: Tensor, relative: Relative) -> None:
    shift = published.config.shift_factor or 0.0
    expected = published.decode(latents / published.config.scaling_factor + shift).sample
    assert expected.std() > 0.2
    result = ours.decode(latents)
    assert result.shape == (3, 3, 3 * ours.spec.downscale, 5 * ours.spec.downscale)
    assert relative(result, expected) < TOLERANCE
    assert torch.equal(VAEDecoder(ours)(latents), result)
    assert relative(ours.decode(latents.roll(1, dims=0)), expected) > 0.1  # a control: latents matter


def test_one_formula_in_double_precision(
    ours: VAE, published: AutoencoderKL, pictures: Tensor, latents: Tensor, relative: Relative
) -> None:
    exact, oracle = deepcopy(ours).double(), deepcopy(published).double()
    posterior = oracle.encode(pictures.double()).latent_dist
    mean, log_variance = exact.moments(pictures.double())
    assert relative(mean, posterior.mean) < 1e-10
    assert relative(log_variance, posterior.logvar) < 1e-10
    expected = oracle.decode(latents.double()).sample
    spec = exact.spec
    network_latents = (latents.double() - spec.shift_factor) * spec.scaling_factor
    assert relative(exact.decode(network_latents), expected) < 1e-10
    exact.decoder.up_blocks[-1].resnets[0].norm1.bias[0] += 1e-3  # a control: one parameter shows
    assert relative(exact.decode(network_latents), expected) > 1e-5


def test_what_enters_is_cast_to_the_dtype_of_the_weights(ours: VAE, pictures: Tensor, latents: Tensor) -> None:
    half = deepcopy(ours).bfloat16()
    assert half.decode(latents).dtype == half.encode(pictures).dtype == torch.bfloat16
    assert torch.equal(half.encode(pictures), half.encode(pictures.bfloat16()))


@pytest.mark.parametrize(
    ("spec", "total", "decoder"),
    [
        (VAESpec(), 83_653_863, 49_490_179),
        (VAESpec(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False), 83_819_683, None),
    ],
    ids=["kl-f8", "sd3"],
)
def test_parameter_counts_of_the_published_networks(spec: VAESpec, total: int, decoder: int | None) -> None:
    with torch.device("meta"):
        vae = VAE(spec)
    assert sum(p.numel() for p in vae.parameters()) == total
    assert decoder is None or sum(p.numel() for p in vae.decoder.parameters()) == decoder


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
