"""Islands of fp32 in graphs of half precision, and graphs of bf16 widened for back ends without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ml_dtypes import bfloat16
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnx.reference import ReferenceEvaluator

from engines.precision import ISLANDS, keep_in_fp32, widened

LARGE = np.array([[[300.0, -300.0, 100.0, 700.0]]], np.float16)
"""Its squares overflow fp16."""


def normalising(dtype: type) -> onnx.ModelProto:
    """InstanceNormalization between two additions, all in ``dtype``."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        make_node("Add", ["x", "zero"], ["a"]),
        make_node("InstanceNormalization", ["a", "one", "shift"], ["n"], name="norm"),
        make_node("Add", ["n", "zero"], ["y"]),
    ]
    constants = [
        from_array(np.array(value, dtype), name) for name, value in (("one", [1.0]), ("shift", [0.5]), ("zero", 0.0))
    ]
    inputs, outputs = ([make_tensor_value_info(name, kind, [1, 1, 4])] for name in "xy")
    model = make_model(
        make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[make_opsetid("", 22)], ir_version=10
    )
    return onnx.shape_inference.infer_shapes(model)


def with_islands(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    graph = ir.from_proto(model)
    count = keep_in_fp32(graph)
    changed = ir.to_proto(graph)
    onnx.checker.check_model(changed, full_check=True)
    return changed, count


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


def test_norms_of_large_activations_survive_in_an_island() -> None:
    model = normalising(np.float16)
    changed, count = with_islands(model)
    assert count == 1
    wide = LARGE.astype(np.float32)
    expected = (wide - wide.mean()) / wide.std() + 0.5
    assert run(changed, LARGE).dtype == np.float16
    np.testing.assert_allclose(run(changed, LARGE), expected, atol=2e-3)
    assert not np.allclose(run(model, LARGE), expected, atol=0.1)  # without it: what the island is for


def test_every_operand_of_an_island_is_fp32() -> None:
    changed, _ = with_islands(normalising(np.float16))
    inferred = onnx.shape_inference.infer_shapes(changed)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    (norm,) = (node for node in inferred.graph.node if node.op_type in ISLANDS)
    assert {types[name] for name in (*norm.input, *norm.output)} == {onnx.TensorProto.FLOAT}


def test_a_graph_of_fp32_is_left_alone() -> None:
    model = normalising(np.float32)
    changed, count = with_islands(model)
    assert count == 0 and len(changed.graph.node) == len(model.graph.node)


def test_a_widened_graph_has_the_rounded_weights_and_no_bf16(tmp_path: Path) -> None:
    value = make_tensor_value_info
    nodes = [
        make_node("Cast", ["x"], ["low"], to=onnx.TensorProto.BFLOAT16),
        make_node("Mul", ["low", "third"], ["product"]),
        make_node("Cast", ["product"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    third = from_array(np.array([1.0 / 3.0], bfloat16), "third")
    graph = make_graph(nodes, "g", [value("x", 1, [1])], [value("y", 1, [1])], [third])
    model = make_model(graph, opset_imports=[make_opsetid("", 22)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "low.onnx")
    wide = onnx.load(widened(tmp_path / "low.onnx", tmp_path / "wide.onnx"))
    onnx.checker.check_model(wide, full_check=True)
    assert onnx.TensorProto.BFLOAT16 not in {tensor.data_type for tensor in wide.graph.initializer}
    y = run(wide, np.array([3.0], np.float32))
    assert y == pytest.approx(3.0 * float(bfloat16(1.0 / 3.0)), rel=1e-6)
    assert y != pytest.approx(1.0, rel=1e-6)
