"""Attention against the formula, written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import attention as module
from kernels.attention import LIBRARIES, attention, attention_reference
from kernels.backend import IMPLEMENTATIONS, chosen, selected

Measured = Callable[..., AbstractContextManager[None]]

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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SDPBackend]:
    """What torch is told to take first, of libraries that take everything."""
    first: list[SDPBackend] = []

    @contextmanager
    def told(order: list[SDPBackend], set_priority: bool) -> Iterator[None]:
        first.append(order[0])
        with sdpa_kernel(order, set_priority):
            yield

    monkeypatch.setattr(module, "sdpa_kernel", told)
    everything = {name: (library, lambda _: True) for name, (library, _) in LIBRARIES.items()}
    monkeypatch.setattr(module, "LIBRARIES", everything)
    return first


@pytest.mark.parametrize("name", IMPLEMENTATIONS["attention"])
def test_what_the_table_names_runs(measured: Measured, asked: list[SDPBackend], name: str) -> None:
    query, key, value = (torch.randn(2, length, 64) for length in (5, 7, 7))
    before = torch._C._get_sdp_priority_order()
    with measured("attention", "d64 short", name):
        result = attention(query, key, value, 2)
    torch.testing.assert_close(result, attention_reference(query, key, value, 2), rtol=1e-5, atol=1e-5)
    assert chosen() == (("attention", name),)
    assert asked == ([LIBRARIES[name][0]] if name in LIBRARIES else [])
    assert torch._C._get_sdp_priority_order() == before


def test_the_switch_names_a_library_too(measured: Measured, asked: list[SDPBackend]) -> None:
    x = torch.randn(1, 3, 64)
    with measured("attention", "d64 short", "flash"), selected({"attention": "cudnn"}):
        attention(x, x, x, 1)
    assert asked == [SDPBackend.CUDNN_ATTENTION] and chosen() == (("attention", "cudnn"),)


def test_a_library_that_does_not_take_the_inputs_is_told_of(
    measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    """None of them takes tensors of the CPU."""
    x = torch.randn(1, 3, 64)
    reason = "cudnn does not take 3 x 3, 1 x 64, torch.float32 on cpu"
    with measured("attention", "d64 short", "cudnn"), caplog.at_level("INFO", logger="kernels.backend"):
        torch.testing.assert_close(attention(x, x, x, 1), attention_reference(x, x, x, 1), rtol=1e-5, atol=1e-5)
    assert [record.getMessage() for record in caplog.records] == [f"kernel attention runs on torch: {reason}"]
    with selected({"attention": "cudnn"}), pytest.raises(ValueError, match=f"the backend is 'cudnn', and {reason}"):
        attention(x, x, x, 1)


def test_a_compiled_network_holds_the_library(measured: Measured) -> None:
    """And torch refuses where that library takes nothing: here cuDNN, on a CPU."""
    x, graphs = torch.randn(1, 3, 64), []

    def backend(graph: torch.fx.GraphModule, _example: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph.code)
        return graph.forward

    for name in LIBRARIES:
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: attention(x, x, x, 1), fullgraph=True, backend=backend)
        with measured("attention", "d64 short", name), torch.inference_mode():
            if name == "flash":
                torch.testing.assert_close(compiled(x), attention_reference(x, x, x, 1), rtol=1e-5, atol=1e-5)
            else:
                with pytest.raises(RuntimeError, match="No viable backend"):
                    compiled(x)
    (graph,) = graphs
    before, called, _ = graph.partition("scaled_dot_product_attention")
    assert called and "'FLASH_ATTENTION'" in before and "'MATH'" not in before
    assert chosen() == (("attention", "cudnn"), ("attention", "flash"))
