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
