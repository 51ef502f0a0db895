"""Precision, decided in the graph: no back end is told to round anything by itself.

Inputs and outputs of a graph are fp32 in every precision. Between them weights and arithmetic are as asked for, but for
islands of fp32 where half precision is known to break: statistics of norms, whose squares overflow fp16 from 256 on,
softmaxes, and the sines of the time, which the networks themselves take in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    import onnx_ir as ir

Precision = Literal["fp32", "fp16", "bf16"]
TORCH_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPSET: dict[Precision, int] = {"fp32": 20, "fp16": 22, "bf16": 22}
"""20 is the first with a Gelu of its own, which ONNX Runtime runs as one kernel. 22 has convolutions of bf16, and a
group normalisation that TensorRT runs as one layer; ONNX Runtime on a CPU has no kernel for it."""
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest accepted difference to torch in fp32, relative to the largest output. Sound exports of small networks are
near 1e-6, 2e-3 and 4e-2."""
EXTERNAL_BYTES = 2**30
"""Weights of more go to a file beside the graph: the format ends at 2 GiB."""
ISLANDS = frozenset({"InstanceNormalization", "ReduceMean", "Softmax"})
"""Operators that are put in fp32. LayerNormalization and GroupNormalization take their statistics in it by themselves
(``stash_type``)."""


def keep_in_fp32(model: ir.Model) -> int:
    """Put casts around the half-precision islands of a graph, in place; returns how many there are.

    TensorRT fuses such casts into the operator.
    """
    import onnx_ir as ir

    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    found = [node for node in model.graph.all_nodes() if node.op_type in ISLANDS and node.outputs[0].dtype in half]
    for node in found:
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype in half:
                cast = _cast(value, ir.DataType.FLOAT)
                node.prepend(cast)
                node.replace_input_with(i, cast.outputs[0])
        for value in node.outputs:
            _round_again(node, value)
    return len(found)


def widened(path: Path, to: Path) -> Path:
    """Write a copy of the graph at ``path`` with fp32 in place of every bf16: the same operators over the same rounded
    weights, for back ends without bf16 arithmetic. Returns ``to``."""
    import onnx_ir as ir

    model = ir.load(path)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values += node.outputs
        for attribute in node.attributes.values():
            _widen_attribute(node, attribute)
    for value in values:
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
            if value.const_value is not None:
                value.const_value = _to_fp32(value.const_value)
    save_graph(model, to)
    return to


def save_graph(model: ir.Model, path: Path, external_bytes: int = EXTERNAL_BYTES) -> None:
    """Write a graph, its weights beside it as ``<name>.data`` where they are more bytes than ``external_bytes``."""
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if size > external_bytes else None)


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    import onnx_ir as ir

    node = ir.node("Cast", [value], {"to": to})
    node.outputs[0].dtype, node.outputs[0].shape = to, value.shape
    return node


def _round_again(node: ir.Node, value: ir.Value) -> None:
    """``node`` computes fp32 now; whoever reads its output reads it rounded as before."""
    import onnx_ir as ir

    assert value.dtype is not None and not value.is_graph_output()
    cast = _cast(value, value.dtype)
    value.dtype = ir.DataType.FLOAT
    for user, i in [use for use in value.uses() if use[0] is not cast]:
        user.replace_input_with(i, cast.outputs[0])
    node.append(cast)


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    import onnx_ir as ir

    if attribute.name in ("to", "dtype") and attribute.value == ir.DataType.BFLOAT16:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT)
    elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.BFLOAT16:
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _to_fp32(attribute.value))


def _to_fp32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import numpy as np
    import onnx_ir as ir

    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
