"""Exported graphs in the operators that ONNX Runtime is fastest in on a processor.

Networks are written for torch and for TensorRT, which fuse what is small; ONNX Runtime runs a graph much as it stands.
No rule here changes a result by more than its order of rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript.rewriter.pattern import RewriteRule


def rewrite_for_onnxruntime(model: ir.Model) -> None:
    """Put all rules of this file to a graph of fp32, in place."""
    from onnxscript.rewriter import rewrite

    rewrite(model, [_split_weights(), *_channel_scale(), _known_choice()])


def _split_weights() -> RewriteRule:
    """The halves of ``x W + b`` as two products, ``x W1 + b1`` and ``x W2 + b2``: to split a weight costs nothing, to
    split the last axis of an activation is a copy of it."""

    def pattern(op: Any, x: Any, weight: Any, bias: Any, axis: Any) -> Any:
        return op.Split(op.Add(op.MatMul(x, weight), bias), num_outputs=2, axis=axis, _outputs=2)

    def splits(x: ir.Value, weight: ir.Value, bias: ir.Value, axis: ir.Attr, **_: Any) -> bool:
        if x.shape is None or not (_is_constant(weight) and _is_constant(bias)) or _array(weight).ndim != 2:
            return False
        columns, last = _array(weight).shape[1], len(x.shape) - 1
        return _array(bias).shape == (columns,) and columns % 2 == 0 and axis.as_int() in (-1, last)

    def halves(op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, **_: Any) -> Any:
        pairs = zip(np.split(_array(weight), 2, axis=1), np.split(_array(bias), 2), strict=True)
        return tuple(
            op.Add(op.MatMul(x, _constant(op, w, f"{weight.name}_{i}")), _constant(op, b, f"{bias.name}_{i}"))
            for i, (w, b) in enumerate(pairs)
        )

    return _rule(pattern, halves, splits)


def _channel_scale() -> tuple[RewriteRule, ...]:
    """``w x + b`` of every channel, as behind a norm, in one pass: the normalisation of a batch by mean 0 and variance
    1."""

    def pattern(op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.Mul(x, weight), bias)

    def once(op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, **_: Any) -> Any:
        w, b = _array(weight).ravel(), _array(bias).ravel()
        names = f"{weight.name}_flat", f"{bias.name}_flat", f"{weight.name}_mean", f"{weight.name}_variance"
        given = zip((w, b, np.zeros_like(w), np.ones_like(w)), names, strict=True)
        return op.BatchNormalization(x, *(_constant(op, array, name) for array, name in given), epsilon=0.0)

    def of_channels(x: ir.Value, weight: ir.Value, bias: ir.Value, **_: Any) -> bool:
        if x.shape is None or not (_is_constant(weight) and _is_constant(bias)):
            return False
        shapes = {_array(weight).shape, _array(bias).shape}
        ones = (1,) * (len(x.shape) - 2)
        return bool(ones) and len(shapes) == 1 and shapes.pop()[1:] == ones

    return _commuted(pattern, once, of_channels)


def _known_choice() -> RewriteRule:
    """The branch that a constant condition takes, as that of torch's ``lerp``, which has a formula for each half of its
    range."""

    def pattern(op: Any, condition: Any, yes: Any, no: Any) -> Any:
        return op.Where(condition, yes, no)

    def taken(_op: Any, condition: ir.Value, yes: ir.Value, no: ir.Value, **_: Any) -> Any:
        return yes if _array(condition).item() else no

    def known(condition: ir.Value, yes: ir.Value, no: ir.Value, **_: Any) -> bool:
        same = yes.shape is not None and no.shape is not None and yes.shape == no.shape
        return same and _is_constant(condition) and _array(condition).size == 1

    return _rule(pattern, taken, known)


def _rule(pattern: Any, replacement: Any, condition: Any) -> RewriteRule:
    from onnxscript.rewriter.pattern import RewriteRule

    return RewriteRule(pattern, replacement, lambda _context, **matched: condition(**matched))


def _commuted(pattern: Any, replacement: Any, condition: Any) -> tuple[RewriteRule, ...]:
    """A rule for every order of the operands of what commutes."""
    return tuple(_rule(pattern, replacement, condition).commute())


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _constant(op: Any, array: NDArray[Any], name: str) -> ir.Value:
    import onnx_ir as ir

    value: ir.Value = op.initializer(ir.tensor(np.ascontiguousarray(array), name=name))
    return value
