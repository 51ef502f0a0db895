"""What inpainting rows keep, as the solver step takes it."""

from __future__ import annotations

import pytest
import torch

from kernels.solver_step import solver_step
from models.families.keep import Keep, batched

LEVELS = [(0.8, 0.6), (0.3, 0.9), (1.0, 0.0)]


def a_keep(shape: tuple[int, ...], seed: int) -> Keep:
    generator = torch.Generator().manual_seed(seed)
    latent, noise = torch.randn(2, *shape, generator=generator)
    return Keep(torch.rand(1, *shape[-2:], generator=generator), latent, noise)


@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 4, 5, 6)], ids=["picture", "clip"])
def test_a_step_of_a_batch_blends_each_row_as_it_would_alone(shape: tuple[int, ...]) -> None:
    keeps = [a_keep(shape, 1), None, a_keep(shape, 2)]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    one, zero = torch.ones(3), torch.zeros(3)
    # x' = x: a step that does nothing else.
    numbers = (one[:, None], one, zero, one.reshape(3, 1, 1), zero[:, None], zero)
    result = solver_step(x[:, None], x[:, None], *numbers, torch.zeros_like(x), *batched(keeps, LEVELS, x))[:, 0]
    for row, keep, level in zip(range(3), keeps, LEVELS, strict=True):
        alone = x[row] if keep is None else keep.blend(x[row], *level)
        assert torch.equal(result[row].view(torch.int32), alone.view(torch.int32))
        assert torch.equal(alone, x[row]) == (keep is None)


def test_rows_that_keep_nothing_cost_nothing() -> None:
    assert batched([None, None], LEVELS[:2], torch.zeros(2, 4, 5, 6)) == (None, None, None)


def test_what_is_kept_is_in_the_dtype_of_the_states() -> None:
    given = batched([None, a_keep((4, 5, 6), 1)], LEVELS[:2], torch.zeros(2, 4, 5, 6, dtype=torch.float64))
    assert [tensor.dtype for tensor in given if tensor is not None] == [torch.float64] * 3
