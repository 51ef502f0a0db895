"""The distilled autoencoder against the published one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.export import Dim

from models.spec.vae import TinyAutoencoderSpec
from models.tiny_autoencoder import TinyAutoencoder
from models.vae import VAEDecoder
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5
CONFIGS = {
    "published-depth": {"encoder_block_out_channels": (12,) * 4, "decoder_block_out_channels": (12,) * 4},
    "sixteen-channels": {
        "encoder_block_out_channels": (6,) * 3,
        "decoder_block_out_channels": (10,) * 3,
        "num_encoder_blocks": (1, 2, 1),
        "num_decoder_blocks": (2, 1, 1),
        "latent_channels": 16,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    },
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> AutoencoderTiny:
    return randomise(AutoencoderTiny(**request.param), 1)


def same(published: AutoencoderTiny) -> TinyAutoencoder:
    tiny = TinyAutoencoder(TinyAutoencoderSpec.from_config(published.config)).to(published.dtype)
    tiny.load_state_dict(published.state_dict(), strict=True)
    return tiny.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(published: AutoencoderTiny) -> TinyAutoencoder:
    return same(published)


@pytest.fixture(scope="module")
def latents(ours: TinyAutoencoder) -> Tensor:
    """Some far outside (-3, 3)."""
    return 3.0 * torch.randn((2, ours.spec.latent_channels, 3, 5), generator=torch.Generator().manual_seed(1))


def test_encode(ours: TinyAutoencoder, published: AutoencoderTiny, relative: Relative) -> None:
    pictures = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    config = published.config
    expected = (published.encode(pictures).latents - config.shift_factor) * config.scaling_factor
    assert expected.std() > 0.05
    assert relative(ours.encode(pictures), expected) < TOLERANCE
    assert relative(ours.encode((pictures + 1.0) / 2.0), expected) > 0.01  # a control: the range of the pictures


def test_decode(ours: TinyAutoencoder, published: AutoencoderTiny, latents: Tensor, relative: Relative) -> None:
    """As the published pipelines decode: scale and shift first."""
    expected = published.decode(latents / published.config.scaling_factor + published.config.shift_factor).sample
    assert expected.std() > 0.2
    result = ours.decode(latents)
    assert result.shape == (2, 3, 3 * ours.spec.downscale, 5 * ours.spec.downscale)
    assert relative(result, expected) < TOLERANCE
    assert torch.equal(VAEDecoder(ours)(latents), result)
    assert relative(ours.decode(latents / 2.0), expected) > 0.01  # a control: the scale matters


def test_one_formula_in_double_precision(published: AutoencoderTiny, latents: Tensor, relative: Relative) -> None:
    oracle = deepcopy(published).double()
    exact, config, z = same(oracle), published.config, latents.double()
    expected = oracle.decode(z).sample
    network = (z - config.shift_factor) * config.scaling_factor
    assert relative(exact.decode(network), expected) < 1e-10
    exact.decoder.layers[2].conv[2].weight[0, 0, 0, 0] += 1e-2  # a control: one parameter shows
    assert relative(exact.decode(network), expected) > 1e-6


def test_the_decoder_exports_with_free_sizes() -> None:
    spec = TinyAutoencoderSpec(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny = randomise(TinyAutoencoder(spec), 1)
    sizes = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    shapes = [(2, 4, 5, 6), (3, 4, 7, 2)]
    first, other = (torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in shapes)
    program = torch.export.export(VAEDecoder(tiny), (first,), dynamic_shapes={"latents": sizes})
    torch.testing.assert_close(program.module()(other), tiny.decode(other))
