"""Each rule on graphs that it is for, and on those that only look like them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.helper import make_attribute, make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
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
    assert all(node.outputs[0].dtype is not None for node in changed.graph if node.op_type != "Shape")
    after = ir.to_proto(changed)
    onnx.checker.check_model(after, full_check=True)
    for one, other in zip(run(model, x), run(after, x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-5)
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


def feed_forward(shape: list[int | str], bias: tuple[int, ...] = (6,), out: int = 4) -> onnx.ModelProto:
    nodes = [
        make_node("MatMul", ["x", "w1"], ["p1"]),
        make_node("Add", ["p1", "b1"], ["s1"]),
        make_node("Gelu", ["s1"], ["gate"], approximate="none"),
        make_node("MatMul", ["x", "w2"], ["p2"]),
        make_node("Add", ["b2", "p2"], ["s2"]),
        make_node("Mul", ["s2", "gate"], ["m"]),
        make_node("MatMul", ["m", "w3"], ["p3"]),
        make_node("Add", ["p3", "b3"], ["y"]),
    ]
    weights = {"w1": array(4, 6), "w2": array(4, 6), "w3": array(6, out)}
    return graph(nodes, shape, ["y"], {**weights, "b1": array(6), "b2": array(*bias), "b3": array(out)})


@pytest.mark.parametrize("size", [(2, 5, 4), (1, 2, 3, 4), (7, 4)])
def test_a_gated_feed_forward_is_three_products_of_matrices(size: tuple[int, ...]) -> None:
    model = feed_forward(["batch", *size[1:]])
    assert rewritten(model, array(*size)) == {"Gemm": 3, "Gelu": 1, "Mul": 1, "Reshape": 2, "Shape": 1}


@pytest.mark.parametrize(("bias", "out"), [((5, 6), 4), ((1,), 4), ((6,), 3)])
def test_what_only_looks_like_a_gated_feed_forward_stays(bias: tuple[int, ...], out: int) -> None:
    assert rewritten(feed_forward([2, 5, 4], bias, out), array(2, 5, 4))["MatMul"] == 3


def test_a_linear_layer_and_its_feed_forward_are_split_first() -> None:
    nodes = linear_then(make_node("Split", ["s"], ["value", "gate"], axis=-1, num_outputs=2))
    nodes[3].attribute.append(make_attribute("approximate", "none"))
    nodes += [make_node("MatMul", ["y", "w3"], ["p3"]), make_node("Add", ["p3", "b3"], ["z"])]
    constants = {"w": array(4, 12), "b": array(12), "w3": array(6, 4), "b3": array(4)}
    assert rewritten(graph(nodes, ["batch", 5, 4], ["z"], constants), array(2, 5, 4))["Gemm"] == 3


@pytest.mark.parametrize(
    ("size", "columns", "kind"), [((2, 5, 4), 4, "Gemm"), ((7, 4), 4, "MatMul"), ((2, 5, 4), 3, "MatMul")]
)
def test_a_square_layer_is_a_product_of_matrices(size: tuple[int, ...], columns: int, kind: str) -> None:
    nodes = [make_node("MatMul", ["x", "w"], ["p"]), make_node("Add", ["b", "p"], ["y"])]
    model = graph(nodes, ["batch", *size[1:]], ["y"], {"w": array(4, columns), "b": array(columns)})
    assert rewritten(model, array(*size))[kind] == 1


def keys_swapped(perm: list[int]) -> onnx.ModelProto:
    """The last two of four axes, as the exporter swaps them."""
    bounds = {"least": -(2**63), "third": -2, "last": -1, "most": 2**63 - 1}
    nodes = [
        make_node("Shape", ["x"], ["shape"], start=0),
        make_node("Slice", ["shape", "third", "last"], ["rows"]),
        make_node("Slice", ["shape", "last", "most"], ["columns"]),
        make_node("Slice", ["shape", "least", "third"], ["outer"]),
        make_node("Concat", ["last", "rows", "columns"], ["three"], axis=0),
        make_node("Reshape", ["x", "three"], ["flat"]),
        make_node("Transpose", ["flat"], ["swapped"], perm=perm),
        make_node("Concat", ["outer", "columns", "rows"], ["four"], axis=0),
        make_node("Reshape", ["swapped", "four"], ["y"]),
    ]
    constants = {name: np.array([value], np.int64) for name, value in bounds.items()}
    return graph(nodes, ["a", "b", "c", "d"], ["y"], constants)


def test_keys_are_swapped_at_once() -> None:
    assert rewritten(keys_swapped([0, 2, 1]), array(2, 3, 4, 5)) == {"Transpose": 1}


def test_another_order_of_axes_stays() -> None:
    assert rewritten(keys_swapped([1, 0, 2]), array(2, 3, 4, 4))["Reshape"] == 2


def doubled(
    size: int = 3, scale: float = 2.0, mode: str = "asymmetric", bias: bool = True, **conv: Any
) -> onnx.ModelProto:
    nearest = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": mode}
    conv = {"pads": [1, 1, 1, 1], **conv}
    nodes = [
        make_node("Resize", ["x", "", "scales"], ["large"], **nearest),
        make_node("Conv", ["large", "w", *(["b"] if bias else [])], ["y"], **conv),
    ]
    constants = {
        "scales": np.array([1, 1, scale, scale], np.float32),
        "w": array(5, 4 // conv.get("group", 1), size, size),
    }
    return graph(nodes, ["batch", 4, "h", "w"], ["y"], {**constants, **({"b": array(5)} if bias else {})})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_a_convolution_behind_a_doubling_sees_the_pixels_before(size: tuple[int, int], bias: bool) -> None:
    assert rewritten(doubled(bias=bias), array(2, 4, *size)) == {"Conv": 4, "Concat": 1, "DepthToSpace": 1}


@pytest.mark.parametrize(
    "other",
    [
        {"size": 5},
        {"scale": 3.0},
        {"mode": "half_pixel"},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"pads": [0, 0, 0, 0]},
    ],
)  # fmt: skip
def test_other_convolutions_behind_a_change_of_size_stay(other: dict[str, Any]) -> None:
    assert rewritten(doubled(**other), array(2, 4, 6, 5)) == {"Resize": 1, "Conv": 1}


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
