"""The comparison with torch: what it accepts and, above all, what it does not."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from engines.cache import EngineCache
from engines.networks import networks_of
from engines.prepare import build
from engines.signature import Signature
from engines.verify import check_graph, check_rows, expected_outputs, largest_error


def test_the_error_is_relative_to_the_largest_output() -> None:
    assert largest_error(torch.tensor([1.0, 102.0]), torch.tensor([0.0, 100.0])) == pytest.approx(0.02)
    pair = (torch.ones(1), torch.tensor([3.0]))
    assert largest_error(pair, (torch.ones(1), torch.tensor([2.0]))) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_is_the_largest_error(bad: float, place: int) -> None:
    outputs = [torch.ones(2), torch.ones(2)]
    outputs[place] = torch.tensor([1.0, bad])
    error = largest_error(tuple(outputs), (torch.ones(2), torch.ones(2)))
    assert not error <= 1e30


def test_rows_that_depend_on_their_neighbours_are_refused() -> None:
    def mixing(x: Tensor) -> Tensor:
        return x - x.mean(dim=0)

    with pytest.raises(RuntimeError, match="row 0 of 2 has other bytes"):
        check_rows(mixing, [torch.randn(2, 3)])
    check_rows(lambda x: x * 2.0, [torch.randn(2, 3)])


@pytest.mark.timeout(600)
def test_a_graph_of_other_weights_is_refused(sdxl_folder: Path, cache: EngineCache) -> None:
    network = networks_of(sdxl_folder)["vae/decoder"]
    path = build(sdxl_folder, cache)["vae/decoder"]
    vae = network.load()
    check_graph(path, network.signature, expected_outputs(vae, network.signature), "fp32")
    vae.get_parameter("vae.decoder.conv_out.bias").data += 0.01  # no longer what was exported
    with pytest.raises(RuntimeError, match=r"largest error .* is \d\.\de-\d\d of"):
        check_graph(path, network.signature, expected_outputs(vae, network.signature), "fp32")


def test_operators_of_other_domains_are_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Mine", ["x"], ["y"], domain="mine")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("mine", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "network.onnx")
    with pytest.raises(RuntimeError, match=r"operators of \['mine'\] are not standard"):
        check_graph(tmp_path / "network.onnx", Signature((), ()), [], "fp32")
