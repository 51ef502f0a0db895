"""Each block against its published counterpart, with the parameters of one loaded into the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention as PublishedAttention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding as PublishedTimestepEmbedding
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from models.blocks import (
    Attention,
    Downsample,
    PixelAttention,
    ResampleBlock,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    TransformerBlock,
    Upsample,
    cross_attention,
    fourier_features,
)
from tests.support.tiny_xl import randomise

TOLERANCE = 1e-5
Relative = Callable[[Tensor, Tensor], float]
Twin = Callable[[nn.Module, nn.Module], nn.Module]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 24, 6, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def twin() -> Twin:
    """(ours, published) -> ours with the published module's parameters, which are redrawn first."""

    def load(ours: nn.Module, published: nn.Module) -> nn.Module:
        ours.load_state_dict(randomise(published, 1).state_dict(), strict=True)
        return ours.eval().requires_grad_(False)

    return load


@pytest.mark.parametrize("width", [24, 40])
@pytest.mark.parametrize("time_dim", [0, 20])
def test_resnet_block(
    x: Tensor,
    twin: Twin,
    relative: Relative,
    width: int,
    time_dim: int,
) -> None:
    options = {"in_channels": 24, "out_channels": width, "groups": 8, "eps": 1e-3}
    published = ResnetBlock2D(**options, temb_channels=time_dim or None)
    ours = twin(ResnetBlock(24, width, 8, 1e-3, time_dim), published)
    time = torch.randn(3, time_dim) if time_dim else None
    activated = None if time is None else nn.functional.silu(time)
    assert relative(ours(x, activated), published(x, time)) < TOLERANCE


def test_resnet_block_misses_its_time_embedding(x: Tensor) -> None:
    with pytest.raises(ValueError, match="time embedding"):
        ResnetBlock(24, 24, 8, 1e-5, time_dim=20)(x)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(("heads", "depth"), [(1, 1), (3, 2), (6, 3)])
def test_spatial_transformer(
    x: Tensor,
    twin: Twin,
    relative: Relative,
    heads: int,
    depth: int,
    tokens: int,
    linear: bool,
) -> None:
    published = Transformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=24 // heads,
        in_channels=24,
        num_layers=depth,
        cross_attention_dim=13,
        norm_num_groups=4,
        use_linear_projection=linear,
    )
    ours = twin(SpatialTransformer(24, heads, depth, 13, 4, linear), published)
    context = torch.randn(3, tokens, 13, generator=torch.Generator().manual_seed(2))
    assert relative(ours(x, context), published(x, context, return_dict=False)[0]) < TOLERANCE


@pytest.mark.parametrize("only_cross_attention", [True, False])
@pytest.mark.parametrize("tokens", [1, 5])
def test_transformer_block(twin: Twin, relative: Relative, tokens: int, only_cross_attention: bool) -> None:
    published = BasicTransformerBlock(24, 3, 8, cross_attention_dim=13, only_cross_attention=only_cross_attention)
    ours = twin(TransformerBlock(24, 3, 13, only_cross_attention), published)
    generator = torch.Generator().manual_seed(2)
    x, context = torch.randn(4, 6, 24, generator=generator), torch.randn(4, tokens, 13, generator=generator)
    assert relative(ours(x, context), published(x, encoder_hidden_states=context)) < TOLERANCE


def test_frames_attend_to_themselves_alone_and_share_their_context(twin: Twin, relative: Relative) -> None:
    published = BasicTransformerBlock(24, 3, 8, cross_attention_dim=13)
    ours = twin(TransformerBlock(24, 3, 13), published)
    generator = torch.Generator().manual_seed(2)
    x, context = torch.randn(2, 5 * 6, 24, generator=generator), torch.randn(2, 4, 13, generator=generator)
    apart = published(x.view(10, 6, 24), encoder_hidden_states=context.repeat_interleave(5, dim=0)).view_as(x)
    assert relative(ours(x, context, frames=5), apart) < TOLERANCE
    assert relative(ours(x, context), apart) > 0.01


def test_over_one_token_attention_is_its_value(relative: Relative) -> None:
    generator = torch.Generator().manual_seed(3)
    attention, norm = randomise(Attention(24, 3, 13), 1).double(), randomise(nn.LayerNorm(24), 2).double()
    x = torch.randn(2, 6, 24, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 2, 13, generator=generator, dtype=torch.float64)
    one, first = context[:, :1], attention.to_out[0](attention.to_v(context[:, :1]))
    assert cross_attention(attention, norm, x, one).shape == (2, 1, 24)
    assert relative(cross_attention(attention, norm, x, one).expand(2, 6, 24), attention(norm(x), one)) < 1e-12
    # Over two tokens it is neither a constant nor the first one's value.
    both = cross_attention(attention, norm, x, context)
    assert relative(both, attention(norm(x), context)) < 1e-12
    assert relative(both, first.expand_as(both)) > 0.1


def test_pixel_attention(x: Tensor, twin: Twin, relative: Relative) -> None:
    published = PublishedAttention(
        24, heads=1, dim_head=24, norm_num_groups=8, eps=1e-6, residual_connection=True, bias=True
    )
    # The published block counts a dropout behind its output projection; it has no parameters.
    ours = twin(PixelAttention(24, 8), published)
    assert relative(ours(x), published(x)) < TOLERANCE


def test_pixel_attention_of_several_heads(x: Tensor, twin: Twin, relative: Relative) -> None:
    options = {"norm_num_groups": 8, "eps": 1e-5, "residual_connection": True, "bias": True}
    published = PublishedAttention(24, heads=3, dim_head=8, **options)
    ours = twin(PixelAttention(24, 8, heads=3, eps=1e-5), published)
    assert relative(ours(x), published(x)) < TOLERANCE
    assert torch.equal(ours(x, "no context is read"), ours(x))
    ours.heads = 1  # a control
    assert relative(ours(x), published(x)) > 100 * TOLERANCE


@pytest.mark.parametrize("up", [False, True])
def test_resample_block(x: Tensor, twin: Twin, relative: Relative, up: bool) -> None:
    published = ResnetBlock2D(in_channels=24, temb_channels=40, groups=8, eps=1e-5, up=up, down=not up)
    ours = twin(ResampleBlock(24, 8, 1e-5, 40, up), published)
    time = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    expected = published(x, time)
    assert expected.shape[-2:] == ((12, 20) if up else (3, 5))
    assert relative(ours(x, torch.nn.functional.silu(time)), expected) < TOLERANCE
    assert relative(ours(x, time), expected) > 100 * TOLERANCE  # a control


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("size", [(6, 10), (7, 9)])
def test_downsample(
    twin: Twin,
    relative: Relative,
    asymmetric: bool,
    size: tuple[int, int],
) -> None:
    published = Downsample2D(24, use_conv=True, padding=0 if asymmetric else 1, name="op")
    x = torch.randn(2, 24, *size, generator=torch.Generator().manual_seed(0))
    assert relative(twin(Downsample(24, asymmetric), published)(x), published(x)) < TOLERANCE


def test_upsample(x: Tensor, twin: Twin, relative: Relative) -> None:
    published = Upsample2D(24, use_conv=True)
    ours = twin(Upsample(24), published)
    assert relative(ours(x), published(x)) < TOLERANCE
    for size in [(12, 20), (11, 20), (12, 19), (11, 19)]:
        assert relative(ours(x, torch.Size(size)), published(x, size)) < TOLERANCE


@pytest.mark.parametrize("hidden", [None, 28])
def test_timestep_embedding(twin: Twin, relative: Relative, hidden: int | None) -> None:
    published = PublishedTimestepEmbedding(16, hidden or 40, out_dim=40)
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert relative(twin(TimestepEmbedding(16, 40, hidden or 0), published)(features), published(features)) < TOLERANCE


@pytest.mark.parametrize("dim", [2, 16, 24, 320])
def test_fourier_features_have_the_published_bits(dim: int) -> None:
    """Rounding of the frequencies is part of what the networks were trained with: at t = 999 it shows in the fifth
    digit, above the tolerance for a network."""
    times = torch.tensor([0.0, 1.0, 417.25, 999.0, 1024.0])
    published = get_timestep_embedding(times, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(fourier_features(times, dim), published)


@pytest.mark.parametrize(("sines_first", "freq_shift"), [(True, 0), (False, 1), (True, 1)])
def test_fourier_features_in_the_order_and_range_of_others(sines_first: bool, freq_shift: int) -> None:
    times = torch.tensor([0.0, 1.0, 417.25, 999.0])
    published = get_timestep_embedding(times, 24, flip_sin_to_cos=not sines_first, downscale_freq_shift=freq_shift)
    features = fourier_features(times, 24, sines_first, freq_shift)
    torch.testing.assert_close(features, published, rtol=0, atol=1e-4)
    assert not torch.allclose(features, fourier_features(times, 24), atol=0.1)


def test_fourier_features_keep_leading_axes_and_fp64() -> None:
    times = torch.tensor([[0.0, 10.0, 999.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    features = fourier_features(times, 4)
    angles = times[..., None] * torch.tensor([1.0, 0.01], dtype=torch.float64)
    torch.testing.assert_close(features, torch.cat([angles.cos(), angles.sin()], -1), rtol=1e-12, atol=1e-12)
    assert fourier_features(times.half(), 4).dtype == torch.float32
