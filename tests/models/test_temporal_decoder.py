"""The video autoencoder against the published one, and clips that must not see each other."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from torch.export import Dim

from models.spec.vae import TemporalVAESpec
from models.temporal_decoder import TemporalDecoderVAE, TemporalVAEDecoder, decode_in_chunks
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5
FRAMES = 5
CONFIGS = {
    "two-levels": {"block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": 3},
    "three-levels": {"block_out_channels": (32, 32, 64), "layers_per_block": 1, "scaling_factor": 0.7},
    "idle-last-block": {"block_out_channels": (32,), "layers_per_block": 3},
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> AutoencoderKLTemporalDecoder:
    levels = len(request.param["block_out_channels"])
    vae = randomise(AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * levels, **request.param), 1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in vae.named_parameters():
        if name.endswith("mix_factor"):  # away from the half-and-half that looks the same from both sides
            parameter.copy_(1.0 + torch.rand(1, generator=generator))
    return vae


def same(published: AutoencoderKLTemporalDecoder) -> TemporalDecoderVAE:
    vae = TemporalDecoderVAE(TemporalVAESpec.from_config(published.config)).to(published.dtype)
    vae.load_state_dict(published.state_dict(), strict=True)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(published: AutoencoderKLTemporalDecoder) -> TemporalDecoderVAE:
    return same(published)


@pytest.fixture(scope="module")
def small() -> TemporalDecoderVAE:
    """In double precision, so that what differs, differs for a reason."""
    spec = TemporalVAESpec(block_out_channels=(32, 32), layers_per_block=1)
    return randomise(TemporalDecoderVAE(spec), 3).double()


def clips(spec: TemporalVAESpec, frames: int = FRAMES) -> Tensor:
    shape = (2, frames, spec.latent_channels, 3, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def decode_published(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    flat = latents.flatten(0, 1) / vae.config.scaling_factor
    return vae.decode(flat, num_frames=latents.shape[1]).sample.unflatten(0, latents.shape[:2])


def test_encode(ours: TemporalDecoderVAE, published: AutoencoderKLTemporalDecoder, relative: Relative) -> None:
    pictures = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    expected = published.encode(pictures).latent_dist
    mean, log_variance = ours.moments(pictures)
    assert relative(mean, expected.mean) < TOLERANCE
    assert relative(log_variance, expected.logvar) < TOLERANCE
    assert torch.equal(ours.encode_unscaled(pictures), mean)
    assert torch.equal(ours.encode(pictures), mean * published.config.scaling_factor)


def test_decode(ours: TemporalDecoderVAE, published: AutoencoderKLTemporalDecoder, relative: Relative) -> None:
    latents = clips(ours.spec)
    expected = decode_published(published, latents)
    assert expected.std() > 0.2
    result = ours.decode(latents, FRAMES)
    factor = ours.spec.downscale
    assert result.shape == (2, FRAMES, 3, 3 * factor, 4 * factor)
    assert relative(result, expected) < TOLERANCE
    assert relative(ours.decode(latents.flip(1), FRAMES).flip(1), expected) > 1e-3  # a control: order matters


def test_one_formula_in_double_precision(published: AutoencoderKLTemporalDecoder, relative: Relative) -> None:
    oracle = deepcopy(published).double()
    exact, latents = same(oracle), clips(TemporalVAESpec.from_config(published.config)).double()
    expected = decode_published(oracle, latents)
    assert relative(exact.decode(latents, FRAMES), expected) < 1e-10
    pictures = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0)).double()
    assert relative(exact.moments(pictures)[0], oracle.encode(pictures).latent_dist.mean) < 1e-10
    for name, parameter in exact.named_parameters():
        if name.endswith("mix_factor"):
            parameter.neg_()
    assert relative(exact.decode(latents, FRAMES), expected) > 0.01  # a control: which side the factor is on


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_clips_decode_together_as_alone(small: TemporalDecoderVAE, chunk: int, relative: Relative) -> None:
    latents = clips(small.spec).double()
    together = small.decode(latents, chunk)
    alone = torch.cat([small.decode(clip[None], chunk) for clip in latents])
    assert relative(together, alone) < 1e-12
    assert relative(together, small.decode(latents, FRAMES)) > 0.01  # another chunk is another picture


def test_chunks_across_clips_would_mix_them(small: TemporalDecoderVAE, relative: Relative) -> None:
    """The control of the test above: one row of frames, cut without regard to clips."""
    latents = clips(small.spec).double()
    alone = torch.cat([small.decode(clip[None], 2) for clip in latents])
    flat = small.decode(latents.flatten(0, 1)[None], 2).unflatten(1, latents.shape[:2])[0]
    assert relative(flat[0, :4], alone[0, :4]) < 1e-12
    assert relative(flat[0, 4], alone[0, 4]) > 0.01


def test_chunks_are_cut_as_asked() -> None:
    seen: list[int] = []

    def decode(chunk: Tensor) -> Tensor:
        seen.append(chunk.shape[1])
        return chunk * 2.0

    latents = torch.randn(2, 7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode_in_chunks(decode, latents, 3), latents * 2.0)
    assert seen == [3, 3, 1]


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_without_frames_is_refused(small: TemporalDecoderVAE, chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_frames is {chunk}, expected at least 1"):
        small.decode(clips(small.spec).double(), chunk)


def test_the_decoder_exports_with_free_sizes() -> None:
    spec = TemporalVAESpec(block_out_channels=(32,), layers_per_block=2)
    small = randomise(TemporalDecoderVAE(spec), 3).double()
    latents = clips(spec, frames=3).double()
    sizes = {0: Dim("batch"), 1: Dim("frames"), 3: Dim("height"), 4: Dim("width")}
    program = torch.export.export(TemporalVAEDecoder(small), (latents,), dynamic_shapes={"latents": sizes})
    other = torch.randn(3, 7, 4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(program.module()(other), small.decode(other, 7))


def test_parameter_counts_of_the_published_network() -> None:
    with torch.device("meta"):
        vae = TemporalDecoderVAE(TemporalVAESpec())
    assert sum(p.numel() for p in vae.parameters()) == 97_742_847
    assert sum(p.numel() for p in vae.decoder.parameters()) == 63_579_183
