"""Attention against the formula, written out."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import attention, attention_reference

SHAPES = [(1, 1, 1, 1, 1), (3, 5, 7, 3, 5), (2, 77, 1, 4, 8), (1, 33, 130, 1, 48), (5, 16, 16, 7, 2)]
TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("batch", "queries", "keys", "heads", "head_dim"), SHAPES)
def test_equals_the_reference(
    batch: int, queries: int, keys: int, heads: int, head_dim: int, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, length, heads * head_dim) for length in (queries, keys, keys)]
    inputs = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    result, expected = attention(*inputs, heads), attention_reference(*inputs, heads)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_the_reference_on_a_case_worked_by_hand() -> None:
    """Two keys whose scores differ by ln 3 share the values 3 : 1. Head dimension 4, so scores are halved."""
    query = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    key = torch.zeros(1, 2, 4, dtype=torch.float64)
    key[0, 0, 0] = torch.log(torch.tensor(3.0, dtype=torch.float64))
    value = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 0.0]]], dtype=torch.float64)
    expected = torch.tensor([[[2.0, 3.0, 4.0, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(attention_reference(query, key, value, heads=1), expected, rtol=1e-12, atol=1e-12)


def test_a_causal_query_sees_no_later_key() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(2, 5, 12, generator=generator, dtype=torch.float64) for _ in range(3))
    result = attention(query, key, value, 3, causal=True)
    torch.testing.assert_close(result, attention_reference(query, key, value, 3, causal=True), rtol=1e-12, atol=1e-12)
    for i in range(5):
        alone = attention(query[:, i : i + 1], key[:, : i + 1], value[:, : i + 1], 3)
        torch.testing.assert_close(result[:, i : i + 1], alone, rtol=1e-12, atol=1e-12)
    assert float((result - attention(query, key, value, 3)).abs().max()) > 0.1


def test_heads_are_independent_groups_of_channels() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 6, 12, generator=generator, dtype=torch.float64) for _ in range(3))
    apart = [attention(q, k, v, 1) for q, k, v in zip(*(t.split(4, -1) for t in (query, key, value)), strict=True)]
    torch.testing.assert_close(attention(query, key, value, 3), torch.cat(apart, -1), rtol=1e-12, atol=1e-12)
