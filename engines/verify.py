"""A graph against the torch network that it was exported from: the standard's checker, then the numbers.

The comparison is part of every export. Graphs of fp32 and fp16 run as they are. ONNX Runtime has no bf16 arithmetic on
a CPU, so a graph of bf16 runs widened to fp32: that checks its operators over the rounded weights, not its roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from engines.call import Output, examples, outputs_of
from engines.precision import TOLERANCE, Precision, widened
from engines.session import OnnxSession
from engines.signature import Signature

CHECKED = (
    {"batch": 1, "height": 1, "width": 2, "tokens": 7, "frames": 1},
    {"batch": 5, "height": 3, "width": 3, "tokens": 32, "frames": 2},
)
"""Sizes other than the traced ones, the smallest among them, so that a size that the tracing froze shows."""
Case = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Inputs and what torch makes of them."""


@torch.no_grad()
def expected_outputs(network: nn.Module, signature: Signature) -> list[Case]:
    """What ``network`` computes at sizes that it is not traced at."""
    cases = []
    for sizes in CHECKED:
        inputs = examples(signature, {symbol: sizes[symbol] for symbol in signature.symbols})
        cases.append((inputs, outputs_of(network(*inputs))))
    return cases


def check_graph(path: Path, signature: Signature, expected: Sequence[Case], precision: Precision) -> None:
    """Check the graph at ``path`` by the standard, then against torch.

    Raises:
        RuntimeError: it holds operators that are not standard ones, computes something else than torch, or gives a row
            other bytes in a batch than alone. The message says where and by how much.
    """
    import onnx

    # By path, not by content: a graph with weights beside it can only be checked where it lies. Infers shapes too.
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    domains = sorted({opset.domain for opset in model.opset_import} - {""})
    if domains or model.functions:
        raise RuntimeError(f"{path}: operators of {domains or 'functions of its own'} are not standard")
    if precision != "bf16":
        return compare(OnnxSession(path, threads=1), expected, TOLERANCE[precision])
    with TemporaryDirectory() as folder:
        signature.write(Path(folder))
        wide = widened(path, Path(folder) / path.name)
        compare(OnnxSession(wide, threads=1), expected, TOLERANCE[precision])


def compare(session: Callable[..., Output], expected: Sequence[Case], tolerance: float) -> None:
    """A session against what torch made of the same inputs, and its rows against themselves alone.

    Raises:
        RuntimeError: it computes something else, or gives a row other bytes in a batch than alone. The message says
            where and by how much.
    """
    for inputs, outputs in expected:
        got = outputs_of(session(*inputs))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        for a, b in zip(got, outputs, strict=True):
            if a.shape != b.shape:
                raise RuntimeError(f"at {shapes} the graph's output is {tuple(a.shape)}, torch's is {tuple(b.shape)}")
        error = largest_error(got, outputs)
        if not error <= tolerance:  # also when it is not a number
            raise RuntimeError(f"at {shapes} the largest error against torch is {error:.1e} of the largest output")
        check_rows(session, inputs)


def largest_error(got: Output, expected: Output) -> float:
    """The largest difference of two results over the largest element of ``expected``, the worst of all outputs; not a
    number where one holds none."""
    errors = [
        ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-30)).item()
        for a, b in zip(outputs_of(got), outputs_of(expected), strict=True)
    ]
    return max(errors, key=lambda error: (error != error, error))


def check_rows(session: Callable[..., Output], inputs: Sequence[Tensor]) -> None:
    """The promise in a session's ``numerics``: a row alone has the bytes that it has in the batch.

    Raises:
        RuntimeError: it does not.
    """
    batch = outputs_of(session(*inputs))
    for i in range(len(batch[0])):
        alone = outputs_of(session(*(tensor[i : i + 1] for tensor in inputs)))
        if not all(torch.equal(one[0], row[i]) for one, row in zip(alone, batch, strict=True)):
            raise RuntimeError(f"row {i} of {len(batch[0])} has other bytes than the same row alone")
