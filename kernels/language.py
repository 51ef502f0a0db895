"""Triton where it is installed. Elsewhere (it is published for Linux alone) the kernels are there to read, not to run.

Kernels take ``jit`` and ``tl`` from here, so that a machine without Triton can import the ops and run them in torch. In
a kernel a ``tl.tensor`` whose name ends in ``_ptr`` is a tensor's address, None for an input that is left out; any
other is a number given when it is launched. A ``tl.constexpr`` is known when the kernel is compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

HAS_TRITON = importlib.util.find_spec("triton") is not None
tl: Any = importlib.import_module("triton.language") if HAS_TRITON else None


def _uncompiled(kernel: Callable[..., Any]) -> Any:
    """The function as it is. Nothing launches it without Triton."""
    return kernel


jit: Callable[[Callable[..., Any]], Any] = importlib.import_module("triton").jit if HAS_TRITON else _uncompiled
INTERPRETED = HAS_TRITON and bool(importlib.import_module("triton.knobs").runtime.interpret)
"""Whether kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET was set when this process began."""
