"""Graphs of 8 bits: what is rounded, how far off it is, and that rows stay their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import onnx
import pytest
import torch

from engines.cache import EngineCache
from engines.call import examples, file_bytes
from engines.export import export
from engines.networks import networks_of
from engines.precision import widened
from engines.prepare import build
from engines.quantise import EIGHT_TOLERANCE, calibrate, quantise
from engines.session import OnnxSession, restored_bytes
from engines.signature import Signature
from engines.verify import check_rows, largest_error
from models.spec.model import Eight

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes
SIZES = {"batch": 2, "height": 3, "width": 4, "tokens": 7}
KINDS = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}


@pytest.mark.parametrize("name", ["unet", "vae/decoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_with_weights_are_in_8_bits_and_near_what_they_were(
    sdxl_folder: Path, cache: EngineCache, tmp_path: Path, name: str, kind: Eight
) -> None:
    path, signature = build(sdxl_folder, cache)[name], networks_of(sdxl_folder)[name].signature
    sizes = {symbol: SIZES[symbol] for symbol in signature.symbols}
    samples = [examples(signature, sizes, seed) for seed in range(3)]
    largest = calibrate(path, samples)
    eight = quantise(path, tmp_path, largest, kind)
    before, after = onnx.load(path), onnx.load(eight)
    onnx.checker.check_model(after, full_check=True)
    restored = {node.output[0] for node in after.graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in after.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    rounded = [node for node in products if node.input[0] in restored]
    assert len(rounded) > 5 and all(node.input[1] in restored for node in rounded)
    ends = {value.name for value in (*after.graph.input, *after.graph.output)}
    whole = [node for node in products if node not in rounded]
    inner = [node for node in whole if not ends & {*node.input[:1], *node.output}]
    weights = {tensor.name: tensor for tensor in after.graph.initializer}
    assert not any(node.input[1] in weights for node in inner), "only products of activations are left as they were"
    assert {tensor.data_type for tensor in weights.values() if tensor.name.endswith("_rounded")} == {KINDS[kind]}
    assert len(after.SerializeToString()) < 0.6 * len(before.SerializeToString())

    fp32 = sum(math.prod(tensor.dims) for tensor in before.graph.initializer) * 4
    assert fp32 <= restored_bytes(eight) < 1.1 * fp32 < 1.1 * file_bytes(path), "the scales come to it"

    session, inputs = OnnxSession(eight, threads=1), examples(signature, sizes, seed=9)
    reference = OnnxSession(path, threads=1)
    assert 1e-4 < largest_error(session(*inputs), reference(*inputs)) < 0.4
    for pixels in (1, 3, 32):  # of one pixel a layer has one row alone and several in a batch
        check_rows(session, examples(signature, {**sizes, "batch": 4, "height": pixels, "width": pixels}, seed=9))
    coarse = quantise(path, _folder(tmp_path / "coarse"), {one: 50 * value for one, value in largest.items()}, "int8")
    error = largest_error(OnnxSession(coarse, threads=1)(*inputs), reference(*inputs))
    assert error > largest_error(session(*inputs), reference(*inputs)), "scales that are too large cost precision"


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_calibration_finds_the_largest_magnitude_of_all_samples(sdxl_folder: Path, cache: EngineCache) -> None:
    path, signature = build(sdxl_folder, cache)["vae/decoder"], networks_of(sdxl_folder)["vae/decoder"].signature
    sizes = {symbol: SIZES[symbol] for symbol in signature.symbols}
    small, large = ((torch.full_like(examples(signature, sizes)[0], value),) for value in (0.1, 30.0))
    one, other, both = calibrate(path, [small]), calibrate(path, [large]), calibrate(path, [small, large])
    assert one != other and both == {name: max(one[name], other[name]) for name in one}


def test_what_cannot_be_quantised_is_said(sdxl_folder: Path, cache: EngineCache, tmp_path: Path) -> None:
    path = build(sdxl_folder, cache)["vae/decoder"]
    with pytest.raises(ValueError, match="without samples"):
        calibrate(path, [])
    with pytest.raises(ValueError, match="was not calibrated"):
        quantise(path, tmp_path, {}, "int8")


@pytest.mark.parametrize("kind", get_args(Eight))
def test_half_precision_with_8_bits(half_decoder: Path, sdxl_folder: Path, tmp_path: Path, kind: Eight) -> None:
    signature = networks_of(sdxl_folder)["vae/decoder"].signature
    sizes = {symbol: SIZES[symbol] for symbol in signature.symbols}
    largest = calibrate(half_decoder, [examples(signature, sizes, seed) for seed in range(3)])
    eight = quantise(half_decoder, tmp_path, largest, kind)
    weights = {tensor.name: tensor for tensor in onnx.load(eight).graph.initializer}
    scales = {tensor.data_type for name, tensor in weights.items() if name.endswith("_scale")}
    assert scales == {onnx.TensorProto.FLOAT16}, "what lies between is in half precision, and so are the scales"
    inputs, reference = examples(signature, sizes, seed=9), OnnxSession(half_decoder, threads=1)
    assert 1e-3 < largest_error(OnnxSession(eight, threads=1)(*inputs), reference(*inputs)) < EIGHT_TOLERANCE[kind]
    products = [node for node in onnx.load(eight).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    whole = [node for node in products if node.input[1] in weights]
    assert 1 <= len(whole) <= 2, "the first and the last layer stay as they were, behind and before their casts"


def test_bf16_is_calibrated_widened(sdxl_folder: Path, tmp_path: Path) -> None:
    network = networks_of(sdxl_folder)["vae/decoder"]
    sizes = {symbol: SIZES[symbol] for symbol in network.signature.symbols}
    graph = export(network.load(), network.signature, tmp_path, "bf16")
    largest = calibrate(graph, [examples(network.signature, sizes)])
    eight = quantise(graph, _folder(tmp_path / "eight"), largest, "fp8")
    scales = {tensor.data_type for tensor in onnx.load(eight).graph.initializer if tensor.name.endswith("_scale")}
    assert scales == {onnx.TensorProto.BFLOAT16}
    inputs, reference = examples(network.signature, sizes, seed=9), network.load()
    wide = widened(eight, _folder(tmp_path / "wide") / eight.name)
    Signature.read(eight.parent).write(wide.parent)
    with torch.no_grad():
        assert largest_error(OnnxSession(wide, threads=1)(*inputs), reference(*inputs)) < EIGHT_TOLERANCE["fp8"]
