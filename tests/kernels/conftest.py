"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernels.backend import OPS, selected


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ops choose for CPU tensors as they do for CUDA tensors, and every switch says kernel. The operators that they
    then call run torch on a CPU: what is traced is what a GPU would run, without one."""
    monkeypatch.setattr("kernels.backend.INTERPRETED", True)
    monkeypatch.setattr("kernels.launch.INTERPRETED", True)
    with selected(dict.fromkeys(OPS, "triton")):
        yield
