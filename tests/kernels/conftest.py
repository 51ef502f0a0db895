"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from kernels import backend, tiles
from kernels.backend import OPS, selected


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ops choose for CPU tensors as they do for CUDA tensors, and every switch says kernel. The operators that they
    then call run torch on a CPU: what is traced is what a GPU would run, without one."""
    monkeypatch.setattr("kernels.backend.INTERPRETED", True)
    monkeypatch.setattr("kernels.launch.INTERPRETED", True)
    with selected(dict.fromkeys(OPS, "triton")):
        yield


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AbstractContextManager[None]]]:
    """Ops choose for CPU tensors as they do on sm_90 where ``measured(op, shape_class, backend)`` was measured; no
    choice was made before."""
    monkeypatch.setattr("kernels.backend.INTERPRETED", True)
    monkeypatch.setattr("kernels.backend.architecture", lambda _: 90)
    monkeypatch.setattr(backend, "_chosen", set())
    with selected(dict.fromkeys(OPS, "auto")):
        yield lambda op, kind, name: tiles.using({"sm_90": {op: {kind: {"backend": name, "tile": 0}}}})
