"""ONNX Runtime as what makes a model's engines."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.cache import EngineCache
from engines.call import examples
from engines.maker import OnnxMaker
from engines.session import graph_numerics
from engines.trial import build_and_judge
from engines.verdict import ROUNDS
from models.adapters.whole import AdapterSet
from tests.support.fixed import FixedMaker

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes


def test_graphs_are_found_opened_and_forgotten(sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path) -> None:
    maker = pickle.loads(pickle.dumps(OnnxMaker(sdxl_folder, EngineCache(sdxl_engines), threads=1)))
    towers = ["text_encoder", "text_encoder_2"]
    assert list(maker.networks()) == ["unet", "vae/decoder", "vae/encoder", *towers]
    changed = AdapterSet(weights=(), identity="of the first tower", parts=frozenset(towers[:1]))
    assert list(replace(maker, adapters=changed).networks()) == ["unet", "vae/decoder", "vae/encoder"]
    path = maker.build("vae/decoder", ())
    assert maker.find("vae/decoder") == path and maker.buckets(path) is None
    assert maker.numerics(path) == maker.open(path).numerics == graph_numerics(path)
    assert maker.weight_bytes("vae/decoder", path) == path.stat().st_size
    empty = OnnxMaker(sdxl_folder, EngineCache(tmp_path), threads=1)
    assert empty.find("vae/decoder") is None
    empty.discard("vae/decoder", path)
    assert path.exists(), "it is not of that cache"


def test_memory_of_8_bits_is_that_of_what_they_are_restored_to(
    sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sdxl_folder, tmp_path / "eight")
    (folder / "darkroom.json").write_text(json.dumps({"eight_bits": {"vae": "int8"}}))
    maker = OnnxMaker(folder, EngineCache(tmp_path / "engines"), threads=1)
    network = maker.networks()["vae/decoder"]
    sample = examples(network.signature, {"batch": 1, "height": 3, "width": 4})
    eight, whole = maker.build(network.name, [sample]), OnnxMaker(sdxl_folder, EngineCache(sdxl_engines), threads=1)
    fp32 = whole.weight_bytes(network.name, whole.build(network.name, ()))
    assert eight.stat().st_size < 0.6 * fp32 < 0.9 * fp32 < maker.weight_bytes(network.name, eight) < 1.1 * fp32


@pytest.mark.parametrize("known", [True, False])
def test_an_engine_of_fixed_shapes_is_judged_on_what_fits_it(
    sdxl_folder: Path, sdxl_engines: Path, known: bool
) -> None:
    maker = FixedMaker(sdxl_folder, EngineCache(sdxl_engines), 1, lanes={"vae/decoder": 2})
    signature, calls = maker.networks()["vae/decoder"].signature, list[str]()
    sizes = [{"batch": 3, "height": 16, "width": 16}, {"batch": 1, "height": 3, "width": 5}]
    inputs = [tuple(tensor.numpy() for tensor in examples(signature, one)) for one in sizes]
    counted = FixedMaker(sdxl_folder, maker.cache, 1, lanes=maker.lanes, before_call=calls.append)
    threads = torch.get_num_threads()
    try:
        built = build_and_judge(counted, ["vae/decoder"], {"vae/decoder": inputs} if known else {}, 60.0)
    finally:
        torch.set_num_threads(threads)
    verdict = built["vae/decoder"].verdict
    assert verdict is not None and 0.0 < verdict.error < 1e-4 and verdict.torch_s > 0.0 < verdict.engine_s
    assert len(calls) == 1 + 1 + ROUNDS, "the call of another size does not count, three lanes are cut to two"
