"""The interpreter itself: what it is known to get wrong, silently."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.language import jit, tl


@jit
def product_kernel(a_ptr: tl.tensor, b_ptr: tl.tensor, c_ptr: tl.tensor, N: tl.constexpr) -> None:
    """c = a b, of [N, N]."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def product(a: Tensor, b: Tensor) -> Tensor:
    c = torch.empty(a.shape)
    product_kernel[(1,)](a, b, c, N=len(a))
    return c


def test_bf16_products_are_right() -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(product(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(product(a, b).double(), a.double() @ b.double().T, rtol=1e-2)


@jit
def rounding_kernel(x_ptr: tl.tensor, stored_ptr: tl.tensor, cast_ptr: tl.tensor, N: tl.constexpr) -> None:
    """x in the dtype of the others, by the store and before it."""
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(stored_ptr + at, x)
    tl.store(cast_ptr + at, x.to(tl.bfloat16))


def test_bf16_is_rounded_to_nearest() -> None:
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    # Ties to even on both sides, over into the next exponent and to infinity, and what is no number.
    tie, inf = 2.0**-8, float("inf")
    x[:8] = torch.tensor([1.0 + tie, 1.0 + 3.0 * tie, 2.0 - tie, -0.0, 3.4e38, inf, -inf, float("nan")])
    stored, cast = torch.empty(2, 1024, dtype=torch.bfloat16)
    rounding_kernel[(1,)](x, stored, cast, N=1024)
    for result in (stored, cast):
        torch.testing.assert_close(result, x.bfloat16(), rtol=0.0, atol=0.0, equal_nan=True)
    assert not torch.equal(x.bfloat16().float(), (x.view(torch.int32) >> 16 << 16).view(torch.float32))
