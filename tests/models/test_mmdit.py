"""The MMDiT against the published one, on redrawn weights, odd shapes and odd configurations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.export import Dim

from models.mmdit import MMDiT, position_table
from models.spec.mmdit import MMDiTSpec
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
CONFIGS = {
    "sd3": {
        "sample_size": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 3,
        "attention_head_dim": 12,
        "caption_projection_dim": 36,
        "joint_attention_dim": 20,
        "pooled_projection_dim": 28,
        "pos_embed_max_size": 9,
    },
    "sd3-edit": {
        "sample_size": 8,
        "in_channels": 33,
        "out_channels": 16,
        "num_layers": 4,
        "num_attention_heads": 5,
        "attention_head_dim": 4,
        "caption_projection_dim": 20,
        "joint_attention_dim": 7,
        "pooled_projection_dim": 5,
        "pos_embed_max_size": 10,
    },
    "sd3.5-large": {
        "sample_size": 16,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "caption_projection_dim": 20,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 9,
        "qk_norm": "rms_norm",
    },
    "sd3.5-medium": {
        "sample_size": 10,
        "in_channels": 33,
        "out_channels": 16,
        "num_layers": 3,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "caption_projection_dim": 24,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 11,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0, 2),
    },
}
CLIP, CLIP_AND_T5 = 5, 13
SHAPES = [(3, 10, 14, CLIP_AND_T5), (3, 10, 14, CLIP), (1, 2, 18, 1), (2, 18, 18, CLIP)]
SD3_MEDIUM = MMDiTSpec(
    in_channels=16,
    out_channels=16,
    depth=24,
    heads=24,
    head_dim=64,
    context_dim=4096,
    vector_dim=2048,
    position_size=192,
    native_size=64,
)
SD3_8B = replace(SD3_MEDIUM, depth=38, heads=38)
SD3_5_MEDIUM = replace(SD3_MEDIUM, position_size=384, dual_attention_layers=tuple(range(13)), qk_norm=True)
PARAMETERS = {
    "sd3-medium": (SD3_MEDIUM, 2_028_328_000, 56_623_104),
    "sd3.5-medium": (SD3_5_MEDIUM, 2_243_171_520, 384 * 384 * 1536),
    "sd3.5-large": (replace(SD3_8B, qk_norm=True), 8_056_627_520, 192 * 192 * 2432),
    "sd3-8b": (SD3_8B, 8_056_617_792, 192 * 192 * 2432),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> SD3Transformer2DModel:
    return randomise(SD3Transformer2DModel(**request.param), 1)


@pytest.fixture(scope="module")
def ours(published: SD3Transformer2DModel) -> MMDiT:
    return twin(published)


@pytest.fixture(scope="module")
def smallest() -> MMDiT:
    """The network of one configuration, for what does not differ between them."""
    return twin(randomise(SD3Transformer2DModel(**CONFIGS["sd3.5-medium"]), 1))


def twin(published: SD3Transformer2DModel) -> MMDiT:
    mmdit = MMDiT(MMDiTSpec.from_config(published.config))
    mmdit.load_state_dict(published.state_dict(), strict=True)
    return mmdit.eval().requires_grad_(False)


def draw(spec: MMDiTSpec, batch: int, height: int, width: int, tokens: int) -> Inputs:
    """Inputs in fp64, to be cast; times as a sampler has them, fractional."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, spec.in_channels, height, width), (batch, tokens, spec.context_dim), (batch, spec.vector_dim)]
    x, context, vector = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, torch.tensor([1000.0, 417.25, 8.9])[:batch], context, vector


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Everything but the time, which is fp32 always."""
    x, c_noise, context, vector = inputs
    return x.to(dtype), c_noise, context.to(dtype), vector.to(dtype)


def run_published(published: SD3Transformer2DModel, inputs: Inputs, skip: tuple[int, ...] = ()) -> Tensor:
    x, c_noise, context, vector = inputs
    return published(x, context, vector, c_noise, skip_layers=skip, return_dict=False)[0]


def in_double(published: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The published network in fp64, also where it takes the mean square in fp32 whatever it is given."""
    double = copy.deepcopy(published).double()
    for parent in list(double.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm):
                norm = nn.RMSNorm(child.dim, eps=child.eps, dtype=torch.float64)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return double.requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_published_network(
    ours: MMDiT, published: SD3Transformer2DModel, shape: tuple[int, int, int, int], relative: Relative
) -> None:
    inputs = cast(draw(ours.spec, *shape), torch.float32)
    expected = run_published(published, inputs)
    assert expected.std() > 0.2
    assert relative(ours(*inputs), expected) < 1e-5


def test_equals_the_published_network_in_double(
    ours: MMDiT, published: SD3Transformer2DModel, relative: Relative
) -> None:
    inputs, double = draw(ours.spec, *SHAPES[0]), in_double(published)
    expected = run_published(double, inputs)
    assert relative(copy.deepcopy(ours).double()(*inputs), expected) < 1e-10
    assert relative(ours(*cast(inputs, torch.float32)).double(), expected) > 1e-10


@pytest.mark.parametrize("changed", range(4), ids=["x", "c_noise", "context", "vector"])
def test_every_input_shows_in_the_output(
    ours: MMDiT, published: SD3Transformer2DModel, changed: int, relative: Relative
) -> None:
    """A control: parity means nothing on a network that ignores its inputs."""
    inputs = cast(draw(ours.spec, *SHAPES[0]), torch.float32)
    rolled = list(inputs)
    rolled[changed] = inputs[changed].roll(1, dims=0)
    assert relative(ours(*rolled), ours(*inputs)) > 0.1
    assert relative(ours(*rolled), run_published(published, tuple(rolled))) < 1e-5


def test_every_parameter_shows_in_the_output(ours: MMDiT, relative: Relative) -> None:
    """A control, of all but the queries of the last block's text, which nothing reads."""
    perturbed, inputs = copy.deepcopy(ours), cast(draw(ours.spec, 2, 4, 6, CLIP), torch.float32)
    expected, unseen = ours(*inputs), set()
    for name, parameter in perturbed.named_parameters():
        original = parameter.clone()
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        if relative(perturbed(*inputs), expected) < 1e-4:
            unseen.add(name)
        parameter.copy_(original)
    last = f"transformer_blocks.{ours.spec.depth - 1}.attn"
    queries = {f"{last}.add_q_proj.weight", f"{last}.add_q_proj.bias"}
    assert unseen == queries | ({f"{last}.norm_added_q.weight"} if ours.spec.qk_norm else set())


def test_a_dropped_encoder_is_not_a_padded_one(smallest: MMDiT, relative: Relative) -> None:
    x, c_noise, context, vector = cast(draw(smallest.spec, *SHAPES[1]), torch.float32)
    padded = torch.cat([context, torch.zeros(3, CLIP_AND_T5 - CLIP, context.shape[2])], dim=1)
    assert relative(smallest(x, c_noise, padded, vector), smallest(x, c_noise, context, vector)) > 0.01


def test_position_table_equals_the_published_one(published: SD3Transformer2DModel, ours: MMDiT) -> None:
    spec, table = ours.spec, published.pos_embed.pos_embed
    assert torch.equal(MMDiT(spec).pos_embed.pos_embed, table)
    assert not torch.equal(position_table(spec.width, spec.position_size, spec.native_size + 1).flatten(0, 1), table[0])


@pytest.mark.parametrize("layers", [(1,), (0, 2), (2, 1, 0)], ids=str)
def test_skipping_layers_equals_the_published_network(
    ours: MMDiT, published: SD3Transformer2DModel, layers: tuple[int, ...], relative: Relative
) -> None:
    inputs, variant = cast(draw(ours.spec, *SHAPES[0]), torch.float32), ours.skipping(layers)
    assert relative(variant(*inputs), run_published(published, inputs, layers)) < 1e-5
    assert relative(variant(*inputs), ours(*inputs)) > 0.01
    assert {id(p) for p in variant.parameters()} == {id(p) for p in ours.parameters()}


@pytest.mark.parametrize("layer", [-1, 3])
def test_skipping_a_layer_that_is_not_there_is_refused(smallest: MMDiT, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"layers \[{layer}\] .* 0 to 2"):
        smallest.skipping((1, layer))


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 3), (24, 4), (4, 24)])
def test_latents_without_a_place_in_the_table_are_refused(smallest: MMDiT, height: int, width: int) -> None:
    inputs = cast(draw(smallest.spec, 1, height, width, CLIP), torch.float32)
    with pytest.raises(ValueError, match=f"{height} x {width}, expected even sides of at most 22"):
        smallest(*inputs)


def test_half_precision_stays_half(smallest: MMDiT, relative: Relative) -> None:
    inputs = draw(smallest.spec, *SHAPES[0])
    result = copy.deepcopy(smallest).bfloat16()(*cast(inputs, torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert relative(result.float(), smallest(*cast(inputs, torch.float32))) < 0.2


def test_exports_with_every_size_open(smallest: MMDiT, relative: Relative) -> None:
    """The variant that skips has the whole network inside. Sides end below that of the table, at which the tracer
    counts the crop as another memory layout."""
    network = smallest.skipping((1,))
    batch, tokens = Dim("batch", min=1), Dim("tokens", min=1)
    sides = {2: 2 * Dim("rows", min=2, max=10), 3: 2 * Dim("columns", min=2, max=10)}
    dynamic = ({0: batch, **sides}, {0: batch}, {0: batch, 1: tokens}, {0: batch})
    traced = cast(draw(smallest.spec, 3, 10, 14, CLIP), torch.float32)
    program = torch.export.export(network, traced, dynamic_shapes=dynamic, strict=False).module()
    for shape in [(1, 4, 20, 1), (2, 18, 4, CLIP_AND_T5)]:
        inputs = cast(draw(smallest.spec, *shape), torch.float32)
        assert relative(program(*inputs), network(*inputs)) < 1e-6


@pytest.mark.parametrize(("spec", "parameters", "positions"), PARAMETERS.values(), ids=PARAMETERS)
def test_published_networks_have_this_many_parameters(spec: MMDiTSpec, parameters: int, positions: int) -> None:
    with torch.device("meta"):
        mmdit = MMDiT(spec)
    assert sum(p.numel() for p in mmdit.parameters()) == parameters
    assert {name: b.numel() for name, b in mmdit.named_buffers()} == {"pos_embed.pos_embed": positions}
    assert "pos_embed.pos_embed" in mmdit.state_dict()
