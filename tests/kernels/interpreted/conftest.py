"""What runs in Triton's interpreter: tests/kernels/test_interpreted.py starts these in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kernels.language import HAS_TRITON, INTERPRETED

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if HAS_TRITON and INTERPRETED:
    import triton.language as tl
    from triton.runtime import interpreter

    def _widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    _converted: Callable[..., Any] = interpreter._convert_float

    def _rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return _converted(data, source, target, mode)
        bits = np.ascontiguousarray(data).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(data), 0x7FC0, nearest).astype(np.uint16)


@pytest.fixture(autouse=True, scope="session")
def rounding_to_nearest() -> Iterator[None]:
    """The interpreter cuts fp32 off where it makes bf16 of it, twice the error of what a GPU does."""
    interpreter._convert_float = _rounded
    yield
    interpreter._convert_float = _converted


@pytest.fixture(autouse=True, scope="session")
def dots_in_float32() -> Iterator[None]:
    """The interpreter holds bf16 as the bits of 16-bit integers and multiplies those, without a word.
    test_interpreter.py fails where this no longer mends it."""
    original: Callable[..., Any] = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: original(
        self, _widened(a), _widened(b), *rest
    )
    yield
    interpreter.InterpreterBuilder.create_dot = original
