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
