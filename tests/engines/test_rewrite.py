"""Each rule on graphs that it is for, and on those that only look like them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxruntime import InferenceSession

from engines.rewrite import rewrite_for_onnxruntime

RANDOM = np.random.default_rng(0)


def array(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def graph(
    nodes: list[onnx.NodeProto], shape: list[int | str], outputs: list[str], constants: dict[str, NDArray[np.generic]]
) -> onnx.ModelProto:
    """Of one input ``x``."""
    given = [make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
    found = [make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    held = [from_array(value, name) for name, value in constants.items()]
    made = make_model(make_graph(nodes, "g", given, found, held), opset_imports=[make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def rewritten(model: onnx.ModelProto, x: NDArray[np.float32]) -> Counter[str]:
    """The operators of the graph after all rules, which gives what it gave before."""
    changed = ir.from_proto(model)
    rewrite_for_onnxruntime(changed)
    after = ir.to_proto(changed)
    onnx.checker.check_model(after, full_check=True)
    for one, other in zip(run(model, x), run(after, x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)
    assert {i.name for i in after.graph.initializer} <= {name for node in after.graph.node for name in node.input}
    return Counter(node.op_type for node in after.graph.node)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {"x": x})]


def linear_then(split: onnx.NodeProto) -> list[onnx.NodeProto]:
    product = [make_node("MatMul", ["x", "w"], ["p"]), make_node("Add", ["p", "b"], ["s"])]
    return [*product, split, make_node("Gelu", ["gate"], ["g"]), make_node("Mul", ["value", "g"], ["y"])]


def test_halves_of_a_product_are_two_products() -> None:
    nodes = linear_then(make_node("Split", ["s"], ["value", "gate"], axis=-1, num_outputs=2))
    model = graph(nodes, ["batch", 5, 4], ["y"], {"w": array(4, 12), "b": array(12)})
    assert rewritten(model, array(2, 5, 4)) == {"MatMul": 2, "Add": 2, "Gelu": 1, "Mul": 1}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_split_of_another_axis_stays(axis: int) -> None:
    nodes = linear_then(make_node("Split", ["s"], ["value", "gate"], axis=axis, num_outputs=2))
    model = graph(nodes, [2, 4, 4], ["y"], {"w": array(4, 12), "b": array(12)})
    assert rewritten(model, array(2, 4, 4))["Split"] == 1


def test_a_split_into_unequal_parts_stays() -> None:
    split = make_node("Split", ["s"], ["value", "gate"], axis=-1, num_outputs=2)
    nodes = [*linear_then(split)[:3], make_node("Gelu", ["gate"], ["g"])]
    model = graph(nodes, [2, 5, 4], ["value", "g"], {"w": array(4, 7), "b": array(7)})
    assert rewritten(model, array(2, 5, 4))["Split"] == 1


def test_a_product_that_somebody_else_reads_is_not_made_twice() -> None:
    nodes = linear_then(make_node("Split", ["s"], ["value", "gate"], axis=-1, num_outputs=2))
    model = graph(nodes, [2, 5, 4], ["y", "s"], {"w": array(4, 12), "b": array(12)})
    assert rewritten(model, array(2, 5, 4))["MatMul"] == 1


@pytest.mark.parametrize("first", [True, False])
def test_scale_and_shift_of_channels_are_one_pass(first: bool) -> None:
    scaled, shifted = (["x", "w"], ["p", "b"]) if first else (["w", "x"], ["b", "p"])
    nodes = [make_node("Mul", scaled, ["p"]), make_node("Add", shifted, ["y"])]
    model = graph(nodes, ["batch", 6, "h", "w"], ["y"], {"w": array(6, 1, 1), "b": array(6, 1, 1)})
    x = array(2, 6, 3, 5)
    assert rewritten(model, x) == {"BatchNormalization": 1}


@pytest.mark.parametrize(
    ("weight", "bias"), [((5,), (5,)), ((6, 1, 5), (6, 1, 5)), ((6, 1, 1), (1,)), ((1,), (1,)), ((3, 5), (3, 5))]
)
def test_what_is_no_scale_of_channels_stays(weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    nodes = [make_node("Mul", ["x", "w"], ["p"]), make_node("Add", ["p", "b"], ["y"])]
    model = graph(nodes, [2, 6, 3, 5], ["y"], {"w": array(*weight), "b": array(*bias)})
    assert rewritten(model, array(2, 6, 3, 5)) == {"Mul": 1, "Add": 1}


def choice(condition: NDArray[np.bool_]) -> onnx.ModelProto:
    nodes = [
        make_node("Mul", ["x", "two"], ["yes"]),
        make_node("Neg", ["x"], ["no"]),
        make_node("Where", ["c", "yes", "no"], ["y"]),
    ]
    return graph(nodes, [2, 3], ["y"], {"two": np.float32(2.0).reshape(()), "c": condition})


@pytest.mark.parametrize(("condition", "kept"), [(True, "Mul"), (False, "Neg")])
def test_a_choice_that_is_known_is_made(condition: bool, kept: str) -> None:
    assert rewritten(choice(np.array([condition])), array(2, 3)) == {kept: 1}


def test_a_choice_for_each_element_stays() -> None:
    assert rewritten(choice(np.array([[True, False, True]])), array(2, 3))["Where"] == 1
