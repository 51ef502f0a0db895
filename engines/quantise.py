"""Graphs of 8 bits: pairs of QuantizeLinear and DequantizeLinear around the products with weights.

    x ~ s q,  q = round(x / s) in [-127, 127] or in E4M3,  s = max |x| / 127 or / 448

One scale a tensor for activations, from inputs that occurred, and one an output channel for weights (Micikevicius et
al. 2022, "FP8 formats for deep learning"; Wu et al. 2020, "Integer quantization for deep learning inference", section
3). Any back end computes the same numbers from such a graph, whether it multiplies in 8 bits or not. What reads an
input of the graph or makes its output stays as it was, and so do products of two activations, as in attention.

What lies between is in the precision of the graph, and scales are too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engines.precision import save_graph, widened
from engines.signature import Signature
from models.spec.model import Eight

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST: dict[Eight, float] = {"int8": 127.0, "fp8": 448.0}
PRODUCTS = ("Conv", "Gemm", "MatMul")
TINY = 1e-7
"""Scale of what is zero everywhere; fp16 has none that is much smaller."""
EIGHT_TOLERANCE: dict[Eight, float] = {"int8": 0.25, "fp8": 0.4}
"""As ``TOLERANCE`` of :mod:`engines.precision`. What they cost in pictures says :mod:`engines.quality`."""


def calibrate(path: Path, samples: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """The largest magnitude of every activation that a product with weights reads.

    Args:
        path: a graph of any precision, its signature beside it.
        samples: inputs that occurred, as in the network's call; CPU tensors, fp32 where they are real.

    Raises:
        ValueError: there are no samples.
    """
    import onnx_ir as ir
    import onnxruntime

    if not samples:
        raise ValueError("a graph cannot be calibrated without samples")
    signature = Signature.read(path.parent)
    with TemporaryDirectory() as folder:
        # ONNX Runtime has no bf16 arithmetic on a processor.
        watched, values = _watched(ir.load(widened(path, Path(folder) / "wide.onnx")))
        names = [value.name for value in watched.graph.outputs[len(signature.outputs) :]]
        save_graph(watched, Path(folder) / path.name)
        session = onnxruntime.InferenceSession(str(Path(folder) / path.name), providers=["CPUExecutionProvider"])
        found = [session.run(names, _feed(signature, sample)) for sample in samples]
    return {name: float(np.max(column)) for name, column in zip(values, zip(*found, strict=True), strict=True)}


def _watched(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """A graph with an output more for every activation that a product with weights reads, its largest magnitude; and
    the names of these activations."""
    import onnx_ir as ir

    values = {str(given.name): given for _, given, _, _ in _products(model)}
    for value in values.values():
        real = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
        magnitude = ir.node("Abs", real.outputs)
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        model.graph.extend([real, magnitude, largest])
        largest.outputs[0].dtype, largest.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([])
        model.graph.outputs.append(largest.outputs[0])
    return model, list(values)


def quantise(path: Path, folder: Path, largest: Mapping[str, float], kind: Eight) -> Path:
    """Write the graph at ``path`` with 8 bits in its products, and its signature, into ``folder``.

    Args:
        path: a graph of any precision, its signature beside it.
        folder: an existing one, another than the graph's.
        largest: what :func:`calibrate` found.
        kind: ``int8``, or ``fp8`` for E4M3.

    Returns:
        The path of the new graph.

    Raises:
        ValueError: ``largest`` is of another graph.
    """
    import onnx_ir as ir

    model, pairs = ir.load(path), _Pairs(kind)
    for node, given, weight, axis in list(_products(model)):
        if (name := str(given.name)) not in largest:
            raise ValueError(f"{name} was not calibrated in {path}")
        node.replace_input_with(0, pairs.of_activation(node, given, largest[name]))
        node.replace_input_with(1, pairs.of_weight(node, weight, axis))
        if not weight.uses():
            model.graph.initializers.pop(str(weight.name))
    for value in pairs.initializers:
        model.graph.register_initializer(value)
    Signature.read(path.parent).write(folder)
    save_graph(model, folder / path.name)
    return folder / path.name


class _Pairs:
    """Makes the pairs of one graph, one for each tensor."""

    def __init__(self, kind: Eight) -> None:
        import ml_dtypes

        self._largest = LARGEST[kind]
        self._dtype = np.dtype(np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)
        self._made: dict[tuple[str, int | None], ir.Value] = {}
        self.initializers: list[ir.Value] = []

    def of_activation(self, node: ir.Node, value: ir.Value, largest: float) -> ir.Value:
        """``value``, rounded before ``node`` reads it."""
        import onnx_ir as ir

        if (key := (str(value.name), None)) not in self._made:
            scale = self._constant(f"{value.name}_scale", np.array(max(largest / self._largest, TINY), _real(value)))
            zero = self._constant(f"{value.name}_zero", np.zeros((), self._dtype))
            rounded = ir.node("QuantizeLinear", [value, scale, zero])
            restored = ir.node("DequantizeLinear", [rounded.outputs[0], scale, zero])
            node.prepend([rounded, restored])
            self._made[key] = _typed_as(restored.outputs[0], value)
        return self._made[key]

    def of_weight(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """A weight in 8 bits, with a scale for each place along ``axis``."""
        import onnx_ir as ir

        if (key := (str(value.name), axis)) not in self._made:
            assert value.const_value is not None
            weight = value.const_value.numpy().astype(np.float32)
            others = tuple(i for i in range(weight.ndim) if i != axis)
            scale = np.maximum(np.abs(weight).max(axis=others) / self._largest, TINY).astype(_real(value))
            # By the scale as it is stored, which in half precision may be a little too small for the largest weight.
            scaled = weight / np.expand_dims(scale.astype(np.float32), others)
            scaled = np.clip(scaled, -self._largest, self._largest)
            rounded = np.rint(scaled) if self._dtype == np.int8 else scaled
            stored = self._constant(f"{value.name}_{axis}_rounded", rounded.astype(self._dtype))
            zero = self._constant(f"{value.name}_{axis}_zero", np.zeros(scale.shape, self._dtype))
            scales = self._constant(f"{value.name}_{axis}_scale", scale)
            restored = ir.node("DequantizeLinear", [stored, scales, zero], {"axis": axis})
            node.prepend(restored)
            self._made[key] = _typed_as(restored.outputs[0], value)
        return self._made[key]

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        import onnx_ir as ir

        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.initializers.append(value)
        return value


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, ir.Value, int]]:
    """The nodes that multiply an activation by a weight, the two, and the axis of the weight's output channels."""
    weights, ends = model.graph.initializers, _ends(model)
    for node in model.graph:
        given, weight = (*node.inputs, None, None)[:2]
        if node.op_type not in PRODUCTS or given is None or weight is None or weight.name not in weights:
            continue
        if ends & {given, *node.outputs}:
            continue
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB")
        yield node, given, weight, 0 if node.op_type == "Conv" or transposed else len(weight.shape or ()) - 1


def _ends(model: ir.Model) -> set[ir.Value]:
    """Inputs and outputs; in half precision also what is cast from the ones and to the others."""
    ends = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        if node.op_type == "Cast" and ends & {*node.inputs, *node.outputs}:
            ends |= {value for value in (*node.inputs, *node.outputs) if value is not None}
    return ends


def _real(value: ir.Value) -> np.dtype[Any]:
    """The type of a value's numbers, which is that of its scale too."""
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy())


def _typed_as(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value


def _feed(signature: Signature, sample: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    pairs = zip(signature.inputs, sample, strict=True)
    return {port.name: tensor.contiguous().numpy() for port, tensor in pairs if not port.empty}
