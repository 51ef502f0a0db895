"""The autoregressive transformer: causal, a set of neighbours, and the same with a cache as without."""

from __future__ import annotations

import pytest
import torch

from models.rarm import RARM, Cache, sample_codes
from models.spec.rarm import RARMSpec
from tests.support.tiny_xl import randomise

SPEC = RARMSpec(codes=11, length=7, width=24, heads=3, layers=2, context_dim=10)


@pytest.fixture(scope="module")
def model() -> RARM:
    return randomise(RARM(SPEC), 1).double()  # type: ignore[return-value]


@pytest.fixture
def tokens(model: RARM) -> torch.Tensor:
    codes = torch.randint(SPEC.codes, (2, SPEC.length - 1), generator=torch.Generator().manual_seed(2))
    return torch.cat([torch.full((2, 1), model.start_token), codes], dim=1)


@pytest.fixture
def neighbours() -> torch.Tensor:
    return torch.randn(2, 4, SPEC.context_dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = RARM(RARMSpec())
    assert sum(parameter.numel() for parameter in model.parameters()) == 230_874_112


def test_a_code_depends_on_those_before_it_alone(model: RARM, tokens: torch.Tensor, neighbours: torch.Tensor) -> None:
    logits = model(tokens, neighbours)
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % SPEC.codes
    other = model(changed, neighbours)
    assert torch.equal(other[:, :4], logits[:, :4])
    assert float((other[:, 4:] - logits[:, 4:]).abs().amin(dim=-1).max()) > 1e-4


def test_neighbours_are_a_set(model: RARM, tokens: torch.Tensor, neighbours: torch.Tensor) -> None:
    logits = model(tokens, neighbours)
    torch.testing.assert_close(model(tokens, neighbours.flip(1)), logits, rtol=0, atol=1e-12)
    assert float((model(tokens, neighbours.flip(0)) - logits).abs().max()) > 1e-2
    assert float((model(tokens, neighbours[:, :2]) - logits).abs().max()) > 1e-3


def test_cached_equals_uncached(model: RARM, tokens: torch.Tensor, neighbours: torch.Tensor) -> None:
    whole, cache = model(tokens, neighbours), Cache()
    parts = [model(tokens[:, :3], neighbours, cache)]
    parts += [model(tokens[:, i : i + 1], torch.zeros(0), cache) for i in range(3, SPEC.length)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    assert cache.length == SPEC.length
    with pytest.raises(ValueError, match="8 tokens, at most 7"):
        model(tokens[:, :1], neighbours, cache)
    with pytest.raises(ValueError, match="2 tokens after 3"):
        short = Cache()
        model(tokens[:, :3], neighbours, short)
        model(tokens[:, :2], neighbours, short)


def greedy(model: RARM, neighbours: torch.Tensor, guidance: float) -> torch.Tensor:
    """The likeliest codes, one whole evaluation a code."""
    tokens = torch.full((2, 1), model.start_token)
    for _ in range(SPEC.length):
        seen, unseen = (model(tokens, lane)[:, -1] for lane in (neighbours, torch.zeros_like(neighbours)))
        tokens = torch.cat([tokens, (unseen + guidance * (seen - unseen)).argmax(1, keepdim=True)], dim=1)
    return tokens[:, 1:]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_likeliest_codes(model: RARM, neighbours: torch.Tensor, guidance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = sample_codes(model, neighbours, generator, top_k=1, guidance=guidance)
    assert torch.equal(codes, greedy(model, neighbours, guidance))
    assert not torch.equal(greedy(model, neighbours, 1.0), greedy(model, neighbours, 2.5))


def test_drawn_codes_follow_the_generator(model: RARM, neighbours: torch.Tensor) -> None:
    one, again, other = (
        sample_codes(model, neighbours, torch.Generator().manual_seed(seed), top_k=11, temperature=2.0)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == (2, SPEC.length) and int(one.max()) < SPEC.codes
    for arguments in ({"top_k": 12}, {"top_k": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="top_k"):
            sample_codes(model, neighbours, torch.Generator(), **({"top_k": 3} | arguments))  # type: ignore[arg-type]
