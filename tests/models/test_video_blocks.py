"""Each temporal block against its published counterpart, with the parameters of one loaded into the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock
from diffusers.models.resnet import TemporalResnetBlock as PublishedTemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from models.blocks import Downsample, fourier_features
from models.video_blocks import (
    Mixer,
    TemporalAttention,
    TemporalResnetBlock,
    TemporalTransformerBlock,
    VideoResnetBlock,
    VideoTransformer,
    clip_context,
    per_frame,
)
from tests.support.tiny_xl import randomise

TOLERANCE = 1e-5
BATCH, FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 5, 32, 3, 7
TIME_DIM, CONTEXT_DIM = 20, 13
Relative = Callable[[Tensor, Tensor], float]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twin(ours: nn.Module, published: nn.Module) -> nn.Module:
    """Ours with the published module's parameters, which are redrawn first."""
    ours.load_state_dict(randomise(published, 1).state_dict(), strict=True)
    return ours.eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return draw(0, BATCH, FRAMES, CHANNELS, HEIGHT, WIDTH)


@pytest.mark.parametrize("time_dim", [0, TIME_DIM])
def test_temporal_resnet_block(x: Tensor, relative: Relative, time_dim: int) -> None:
    published = PublishedTemporalResnetBlock(CHANNELS, temb_channels=time_dim or None, eps=1e-3)
    ours = twin(TemporalResnetBlock(CHANNELS, 1e-3, time_dim), published)
    time = draw(1, BATCH, FRAMES, time_dim) if time_dim else None
    expected = published(x.transpose(1, 2), time).transpose(1, 2)
    activated = None if time is None else nn.functional.silu(time)
    assert relative(ours(x, activated), expected) < TOLERANCE
    assert relative(ours(x.flip(1), activated).flip(1), expected) > 0.01


def test_temporal_resnet_block_misses_its_time_embedding(x: Tensor) -> None:
    with pytest.raises(ValueError, match="time embedding"):
        TemporalResnetBlock(CHANNELS, 1e-5, TIME_DIM)(x)


@pytest.mark.parametrize("width", [32, 64])
def test_video_resnet_block(x: Tensor, relative: Relative, width: int) -> None:
    published = SpatioTemporalResBlock(CHANNELS, width, TIME_DIM, eps=1e-3)
    ours = twin(VideoResnetBlock(CHANNELS, width, 1e-3, TIME_DIM), published)
    time, indicator = draw(1, BATCH, FRAMES, TIME_DIM), torch.zeros(BATCH, FRAMES)
    expected = published(x.flatten(0, 1), time.flatten(0, 1), indicator).unflatten(0, (BATCH, FRAMES))
    assert relative(ours(x, nn.functional.silu(time)), expected) < TOLERANCE
    # The mixer counts.
    ours.time_mixer.mix_factor += 0.1
    assert relative(ours(x, nn.functional.silu(time)), expected) > 1e-3


def test_mixer(x: Tensor, relative: Relative) -> None:
    published = AlphaBlender(alpha=0.3)
    ours = twin(Mixer(), published)
    temporal = draw(1, *x.shape)
    expected = published(x.transpose(1, 2), temporal.transpose(1, 2), torch.zeros(BATCH, FRAMES)).transpose(1, 2)
    assert relative(ours(x, temporal), expected) < TOLERANCE
    assert relative(ours(temporal, x), expected) > 0.01


@pytest.mark.parametrize("tokens", [1, 4])
def test_temporal_transformer_block(relative: Relative, tokens: int) -> None:
    published = TemporalBasicTransformerBlock(CHANNELS, CHANNELS, 4, 8, cross_attention_dim=CONTEXT_DIM)
    ours = twin(TemporalTransformerBlock(CHANNELS, 4, CONTEXT_DIM), published)
    pixels = HEIGHT * WIDTH
    x, context = draw(0, BATCH, FRAMES, pixels, CHANNELS), draw(1, BATCH, tokens, CONTEXT_DIM)
    expected = published(x.flatten(0, 1), FRAMES, context.repeat_interleave(pixels, dim=0)).view_as(x)
    assert relative(ours(x, context), expected) < TOLERANCE
    assert relative(ours(x, context.flip(0)), expected) > 0.01


def test_temporal_attention_takes_no_context() -> None:
    with pytest.raises(ValueError, match="no context"):
        TemporalAttention(CHANNELS, 4)(draw(0, 1, 2, 3, CHANNELS), draw(1, 1, 2, CHANNELS))


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(("heads", "depth"), [(1, 1), (4, 2)])
def test_video_transformer(x: Tensor, relative: Relative, heads: int, depth: int, tokens: int) -> None:
    published = TransformerSpatioTemporalModel(
        heads, CHANNELS // heads, CHANNELS, num_layers=depth, cross_attention_dim=CONTEXT_DIM
    )
    ours = twin(VideoTransformer(CHANNELS, heads, depth, CONTEXT_DIM), published)
    context = draw(1, BATCH, tokens, CONTEXT_DIM)
    repeated, indicator = context.repeat_interleave(FRAMES, dim=0), torch.zeros(BATCH, FRAMES)
    expected = published(x.flatten(0, 1), repeated, indicator, return_dict=False)[0].view_as(x)
    assert relative(ours(x, clip_context(context, FRAMES, {CHANNELS})), expected) < TOLERANCE
    # Frames know where they are.
    shifted = clip_context(context, FRAMES + 1, {CHANNELS})
    positions = {CHANNELS: shifted.positions[CHANNELS][1:]}
    assert relative(ours(x, shifted._replace(positions=positions)), expected) > 1e-3


def test_clip_context_holds_the_features_of_frame_indices() -> None:
    tokens = draw(1, BATCH, 3, CONTEXT_DIM).to(torch.bfloat16)
    context = clip_context(tokens, FRAMES, {6, 10})
    assert context.tokens is tokens and set(context.positions) == {6, 10}
    # Made in fp32 and rounded once.
    expected = fourier_features(torch.arange(FRAMES, dtype=torch.float32), 10).to(torch.bfloat16)
    assert torch.equal(context.positions[10], expected)


def test_per_frame_is_the_layer_on_each_frame(x: Tensor) -> None:
    layer = Downsample(CHANNELS).requires_grad_(False)
    expected = torch.stack([layer(clip) for clip in x])
    torch.testing.assert_close(per_frame(layer, x), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(per_frame(layer, x[0]), layer(x[0]))
