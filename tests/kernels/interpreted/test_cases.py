"""Every kernel in Triton's interpreter, against its reference in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import CASES, TOLERANCES, Case, solver_case


# In lanes that are masked out, sigmoid meets what no element of the input comes to.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    case.check(dtype, "cpu")


@pytest.mark.parametrize("factor", [1.0, -0.0])
def test_a_row_that_keeps_nothing_has_its_bits_beside_one_that_keeps(factor: float) -> None:
    """Signs of zeros too; and one that keeps has its own beside another."""
    case = solver_case(3, 2, 2, (4, 5, 7), keeps=(0, 2))
    given = [tensor.float() for tensor in case.inputs(torch.Generator().manual_seed(0))]
    for place in (0, 1, 8):
        given[place][1] *= factor
    whole, without = case.launch(*given).view(torch.int32), case.launch(*given[:9]).view(torch.int32)
    alone = case.launch(*(tensor[:1] for tensor in given)).view(torch.int32)
    assert torch.equal(whole[1], without[1]) and torch.equal(whole[0], alone[0])
    assert not torch.equal(whole[0], without[0])
