"""Launchers as torch operators, so that ``torch.compile`` and ``torch.export`` take them whole.

Each is ``darkroom::<op>``: on CUDA the launches, on a CPU torch's operators, and for tracing the empty output. The
same torch function is the operator's decomposition. A network traced on CPU tensors holds none of these operators: the
ops' public functions have taken torch's by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels.language import INTERPRETED

F = TypeVar("F", bound=Callable[..., Any])

DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {}
"""By operator: what it is in torch's own operators. For ``ExportedProgram.run_decompositions`` of a program that was
traced on CUDA tensors, beside ``torch.export.default_decompositions()``."""


def like_first(x: Tensor, *_: Any) -> Tensor:
    """Room for a result of the shape and dtype of the first input, contiguous."""
    return x.new_empty(x.shape)


def constant_when_traced(function: F) -> F:
    """Mark a function whose result a traced network takes as a constant: one that reads a file, or writes a log.

    The mark is that of ``torch.compiler.assume_constant_result``, which imports torch's tracer to set it. That takes
    most of a second, and a worker that traces nothing never needs it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def custom_op(
    name: str, launch: Callable[..., Tensor], eager: Callable[..., Tensor], empty: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Register ``darkroom::name``. All three functions take the same arguments.

    Args:
        name: of the operator.
        launch: runs the kernels. Its annotations are the operator's schema.
        eager: the same in torch's operators.
        empty: an output of the shape, dtype and strides that ``launch`` returns.
    """
    op = torch.library.custom_op(f"darkroom::{name}", launch, mutates_args=(), device_types="cuda")

    def on_cpu(*arguments: Any) -> Tensor:
        return empty(*arguments).copy_(eager(*arguments))

    op.register_kernel("cpu")(launch if INTERPRETED else on_cpu)
    op.register_fake(empty)
    DECOMPOSITIONS[getattr(torch.ops.darkroom, name).default] = eager
    call: Callable[..., Tensor] = op
    return call
