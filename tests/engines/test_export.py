"""Exported graphs of every family against the torch networks: the comparison is part of the export."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from engines.cache import EngineCache
from engines.call import examples, outputs_of
from engines.export import ONNX_FILE, export
from engines.precision import ISLANDS, OPSET, Precision
from engines.prepare import build
from engines.session import OnnxSession
from engines.signature import Signature, port
from engines.verify import largest_error
from tests.support.exportable import CHEAP, COSTLY, FAMILIES, by_rotation, tiny_decoder

pytestmark = pytest.mark.timeout(600)  # tens of seconds of one core, of a busy one minutes


@pytest.mark.parametrize("family", [*CHEAP, *by_rotation(COSTLY)])
def test_every_family_in_fp32(family: str, tmp_path: Path) -> None:
    network, signature = FAMILIES[family](tmp_path / "model")
    path = export(network, signature, tmp_path)  # compares at two sizes, and rows with themselves alone
    sizes = dict(zip(signature.symbols, (7, 5, 3, 11, 2), strict=False))  # and here at a third: odd in every symbol
    inputs, others = examples(signature, sizes, seed=1), examples(signature, sizes, seed=2)
    session = OnnxSession(path, threads=1)
    with torch.no_grad():
        expected = network(*inputs)
    assert largest_error(session(*inputs), expected) <= 1e-4
    assert largest_error(session(*others), expected) > 0.01  # another answer to another question
    changed = outputs_of(session(*others))
    for i, one in enumerate(signature.inputs):
        if not one.empty:
            mixed = [*others[:i], inputs[i], *others[i + 1 :]]
            assert not torch.equal(outputs_of(session(*mixed))[-1], changed[-1]), f"{one.name} does not matter"


HALF: list[tuple[str, Precision]] = [
    ("sd3-transformer", "bf16"),
    ("svd-decoder", "bf16"),
    ("sd3-transformer", "fp16"),
    ("sd3-text-encoder-3", "bf16"),
]


@pytest.mark.parametrize("case", by_rotation(HALF), ids=str)
def test_half_precision(case: tuple[str, Precision], tmp_path: Path) -> None:
    family, precision = case
    check_half(export(*FAMILIES[family](tmp_path / "model"), tmp_path, precision), precision)


def test_half_precision_of_a_decoder(half_decoder: Path) -> None:
    check_half(half_decoder, "fp16")


def check_half(path: Path, precision: Precision) -> None:
    """Weights of that precision, fp32 at the borders and in the islands; the numbers were compared by the export."""
    model = onnx.load(path)
    kind = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1 and tensor.data_type != 7]
    assert {tensor.data_type for tensor in weights} == {kind}
    assert [opset.version for opset in model.opset_import] == [OPSET[precision]]
    borders = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert set(borders) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    model = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    islands = [node for node in model.graph.node if node.op_type in ISLANDS]
    assert all(types[node.output[0]] == onnx.TensorProto.FLOAT for node in islands)


def test_large_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    network, signature = tiny_decoder(tmp_path)
    path = export(network, signature, tmp_path, external_bytes=1000)
    beside, decoder = (tmp_path / f"{ONNX_FILE}.data").stat().st_size, network.get_submodule("vae.decoder")
    assert beside >= sum(4 * weight.numel() for weight in decoder.parameters() if weight.dim() > 1) > 1000
    inputs = examples(signature, {"batch": 1, "height": 2, "width": 2})
    with torch.no_grad():
        assert largest_error(OnnxSession(path, threads=1)(*inputs), network(*inputs)) <= 1e-4


def test_graphs_hold_standard_operators_of_one_opset_and_no_paths(sdxl_folder: Path, cache: EngineCache) -> None:
    for path in build(sdxl_folder, cache).values():
        model = onnx.load(path)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET["fp32"])]
        assert not model.functions
        assert b".py" not in path.read_bytes()


def test_a_network_that_the_graph_does_not_compute_leaves_an_error(tmp_path: Path) -> None:
    class Counting(nn.Module):
        """Another answer at every call, which no graph has."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    call = Signature((port("x", ("batch", 3)),), (port("output", ("batch", 3)),))
    with pytest.raises(RuntimeError, match=r"largest error against torch is \d\.\de[+-]\d\d of the largest output"):
        export(Counting().eval(), call, tmp_path)
