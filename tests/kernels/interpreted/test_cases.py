"""Every kernel in Triton's interpreter, against its reference in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import CASES, TOLERANCES, Case


# In lanes that are masked out, sigmoid meets what no element of the input comes to.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    case.check(dtype, "cpu")
