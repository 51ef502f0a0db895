"""Exported graphs in the operators that ONNX Runtime is fastest in on a processor.

Networks are written for torch and for TensorRT, which fuse what is small; ONNX Runtime runs a graph much as it stands.
No rule here changes a result by more than its order of rounding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript.rewriter.pattern import RewriteRule


_OF_ONE_TYPE = ("Add", "Concat", "Conv", "Gelu", "Gemm", "MatMul", "Mul", "Reshape")
"""Operators of the rules whose output has the type of their first input."""


def rewrite_for_onnxruntime(model: ir.Model) -> None:
    """Put all rules of this file to a graph of fp32, in place."""
    from onnxscript.rewriter import rewrite

    rewrite(model, [
        _split_weights(),
        *_gated_feed_forward(),
        *_square_layer(),
        _transposed_keys(),
        *_doubled_convolution(),
        *_channel_scale(),
        _known_choice(),
    ])  # fmt: skip
    for node in model.graph:  # a rule leaves the values between its nodes without a type
        first, made = (*node.inputs, None)[0], node.outputs[0]
        if node.op_type in _OF_ONE_TYPE and made.type is None and first is not None:
            made.type = first.type


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


def _gated_feed_forward() -> tuple[RewriteRule, ...]:
    """``(gelu(x W1 + b1) * (x W2 + b2)) W3 + b3`` (GEGLU, Shazeer 2020) on the rows of one matrix: a product of two
    matrices begins with its bias, one of stacks of them takes another pass for it."""

    def pattern(op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any, approximate: Any) -> Any:
        gate = op.Gelu(op.Add(op.MatMul(x, w1), b1), approximate=approximate)
        return op.Add(op.MatMul(op.Mul(gate, op.Add(op.MatMul(x, w2), b2)), w3), b3)

    def on_rows(op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any, approximate: Any) -> Any:
        rows = op.Reshape(x, _constant(op, np.array([-1, _array(w1).shape[0]]), f"{w1.name}_rows"))
        gate = op.Gelu(op.Gemm(rows, w1, b1), approximate=approximate)
        return op.Reshape(op.Gemm(op.Mul(gate, op.Gemm(rows, w2, b2)), w3, b3), op.Shape(x))

    def constant(w1: ir.Value, b1: ir.Value, w2: ir.Value, b2: ir.Value, w3: ir.Value, b3: ir.Value, **_: Any) -> bool:
        if not all(_is_constant(value) for value in (w1, b1, w2, b2, w3, b3)) or _array(w1).ndim != 2:
            return False
        outer, inner = _array(w1).shape
        found = [_array(value).shape for value in (w2, w3, b1, b2, b3)]
        return found == [(outer, inner), (inner, outer), (inner,), (inner,), (outer,)]

    return _commuted(pattern, on_rows, constant)


def _square_layer() -> tuple[RewriteRule, ...]:
    """``x W + b`` with a square W on the rows of one matrix, as above: an attention's last layer, and projections."""

    def pattern(op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.MatMul(x, weight), bias)

    def on_rows(op: Any, x: Any, weight: ir.Value, bias: ir.Value, **_: Any) -> Any:
        rows = op.Reshape(x, _constant(op, np.array([-1, _array(weight).shape[0]]), f"{weight.name}_rows"))
        return op.Reshape(op.Gemm(rows, weight, bias), op.Shape(x))

    def square(x: ir.Value, weight: ir.Value, bias: ir.Value, **_: Any) -> bool:
        if x.shape is None or len(x.shape) < 3 or not (_is_constant(weight) and _is_constant(bias)):
            return False
        return _array(bias).ndim == 1 and _array(weight).shape == 2 * _array(bias).shape

    return _commuted(pattern, on_rows, square)


def _transposed_keys() -> RewriteRule:
    """The exporter's way to swap the last two of four axes: it makes three of the four, swaps, and makes four again,
    with the shapes taken apart and put together each time."""

    def pattern(op: Any, keys: Any, least: Any, third: Any, last: Any, most: Any) -> Any:
        shape = op.Shape(keys, start=0)
        rows, columns, outer = op.Slice(shape, third, last), op.Slice(shape, last, most), op.Slice(shape, least, third)
        swapped = op.Transpose(_reshaped(op, keys, op.Concat(last, rows, columns, axis=0)), perm=[0, 2, 1])
        return _reshaped(op, swapped, op.Concat(outer, columns, rows, axis=0))

    def swap(op: Any, keys: ir.Value, **_: Any) -> Any:
        return op.Transpose(keys, perm=[0, 1, 3, 2])

    def of_the_last_two(keys: ir.Value, least: ir.Value, third: ir.Value, last: ir.Value, most: ir.Value) -> bool:
        bounds = (least, third, last, most)
        if keys.shape is None or len(keys.shape) != 4 or not all(map(_is_constant, bounds)):
            return False
        ends = [_array(bound).item() for bound in bounds]
        return ends[2] == -1 and [range(4)[a:b] for a, b in pairwise(ends)] == [range(2), range(2, 3), range(3, 4)]

    return _rule(pattern, swap, of_the_last_two)


def _reshaped(op: Any, x: Any, shape: Any) -> Any:
    return op.Reshape(x, shape, _allow_other_attributes=True)


def _doubled_convolution() -> tuple[RewriteRule, ...]:
    """A convolution over 3 x 3 behind a doubling of pixels, as four over 2 x 2 of the pixels before: where it would see
    copies of one, that one has the sum of their weights. For each of them that is 16 products instead of 36."""

    def pattern(op: Any, x: Any, scales: Any, weight: Any) -> Any:
        return op.Conv(_doubled(op, x, scales), weight, _allow_other_attributes=True, _outputs=["y"])

    def with_bias(op: Any, x: Any, scales: Any, weight: Any, bias: Any) -> Any:
        return op.Conv(_doubled(op, x, scales), weight, bias, _allow_other_attributes=True, _outputs=["y"])

    def of_quarters(op: Any, x: Any, weight: ir.Value, bias: ir.Value | None = None, **_: Any) -> Any:
        parts = []
        for row, column in np.ndindex(2, 2):
            kernel = _pair_sums(_pair_sums(_array(weight), 2, row), 3, column)
            given = [] if bias is None else [bias]
            pads = [1 - row, 1 - column, row, column]
            parts.append(op.Conv(x, _constant(op, kernel, f"{weight.name}_{row}{column}"), *given, pads=pads))
        return op.DepthToSpace(op.Concat(*parts, axis=1), blocksize=2, mode="DCR")

    def doubles(scales: ir.Value, weight: ir.Value, y: ir.Value, **_: Any) -> bool:
        node = y.producer()
        if node is None or not (_is_constant(scales) and _is_constant(weight)):
            return False
        known = node.attributes
        steps = {*known.get_ints("strides", (1,)), *known.get_ints("dilations", (1,)), known.get_int("group", 1)}
        plain = steps == {1} and tuple(known.get_ints("pads", ())) == (1, 1, 1, 1)
        return plain and _array(scales).tolist() == [1, 1, 2, 2] and _array(weight).shape[2:] == (3, 3)

    return _rule(pattern, of_quarters, doubles), _rule(with_bias, of_quarters, doubles)


def _doubled(op: Any, x: Any, scales: Any) -> Any:
    return op.Resize(
        x,
        None,
        scales,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
        _allow_other_attributes=True,
    )


def _pair_sums(kernel: NDArray[Any], axis: int, half: int) -> NDArray[Any]:
    """Of three weights along an axis the two of the pixels before doubling: the first alone and the others together for
    the first of two pixels, the other way around for the second."""
    first, middle, last = np.split(kernel, 3, axis)
    pair = (first, middle + last) if half == 0 else (first + middle, last)
    return np.concatenate(pair, axis)


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
