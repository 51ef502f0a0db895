"""Engines built and tried in front of torch: taken, refused, or only slower."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines import verdict
from engines.cache import EngineCache
from engines.call import Output, examples, outputs_of
from engines.life import Built, Samples
from engines.maker import OnnxMaker
from engines.networks import networks_of
from engines.precision import TOLERANCE
from engines.prepare import find
from engines.refused import Refusal, allow, refusal_of
from engines.trial import _serving, build_and_judge
from engines.verify import largest_error

pytestmark = pytest.mark.usefixtures("_threads")
DECODER = "vae/decoder"


@pytest.fixture
def _threads() -> Any:
    """A build sets the threads of its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def double(x: Tensor) -> Tensor:
    return x * 2.0


@pytest.fixture
def samples(sdxl_folder: Path) -> Samples:
    signature = networks_of(sdxl_folder)[DECODER].signature
    inputs = [examples(signature, {"batch": 2, "height": 3, "width": 5}, seed) for seed in range(4)]
    return {DECODER: [tuple(tensor.numpy() for tensor in one) for one in inputs]}


@pytest.mark.timeout(600)
def test_the_work_of_a_build_on_real_inputs(
    sdxl_folder: Path, sdxl_engines: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxMaker):
        def open(self, path: Path) -> Any:
            return double

    class Broken(OnnxMaker):
        def open(self, path: Path) -> Any:
            raise RuntimeError("another version")

    def work(names: list[str], kind: type[OnnxMaker] = OnnxMaker) -> dict[str, Built]:
        return build_and_judge(kind(sdxl_folder, EngineCache(sdxl_engines), 1), names, samples, 60.0)

    built = work(["vae/decoder", "vae/encoder"])
    judged = built["vae/decoder"]
    assert judged.path is not None and judged.path.exists() and judged.verdict is not None
    assert judged.verdict.accepted and judged.verdict.error < 1e-4
    assert built["vae/encoder"].path is not None and built["vae/encoder"].verdict is None
    with pytest.raises(ValueError, match="network 'refiner' is none of tiny-xl, which has unet"):
        work(["refiner"])
    discarded: list[object] = []
    monkeypatch.setattr(EngineCache, "discard", lambda *arguments: discarded.append(arguments[1]))
    wrong = work(["vae/decoder"], Wrong)["vae/decoder"]
    assert wrong.path is None and "other shapes" in wrong.fault and len(discarded) == 1
    broken = work(["vae/decoder"], Broken)["vae/decoder"]
    assert broken.path is None and broken.fault == "it raised RuntimeError: another version" and len(discarded) == 2


@pytest.mark.timeout(600)
def test_what_cannot_be_exported_is_a_fault_of_that_network_alone(sdxl_folder: Path, cache: EngineCache) -> None:
    class Refusing(OnnxMaker):
        def build(self, name: str, samples: Any) -> Path:
            if name == "vae/encoder":
                raise RuntimeError("the largest error against torch is 1e+0")
            return super().build(name, samples)

    names, root = ["vae/decoder", "vae/encoder"], find(sdxl_folder, cache)["unet"].parent.parent
    built = build_and_judge(Refusing(sdxl_folder, EngineCache(root), 1), names, {}, 60.0)
    assert built["vae/decoder"].path is not None
    assert built["vae/encoder"] == Built(None, "the largest error against torch is 1e+0")


class Slow(OnnxMaker):
    """Right, and slower than any network here."""

    def open(self, path: Path) -> Any:
        session = super().open(path)

        def call(*inputs: Tensor) -> Output:
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            return session(*inputs)

        return call


@pytest.mark.timeout(600)
def test_an_engine_that_is_slower_than_torch_is_not_taken_and_not_built_again(
    sdxl_folder: Path, sdxl_engines: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "ROUNDS", 3)
    maker = Slow(sdxl_folder, EngineCache(sdxl_engines), 1)
    entry = maker.build(DECODER, ()).parent
    try:
        slow = build_and_judge(maker, [DECODER], samples, 60.0)[DECODER]
        assert slow.path is None and slow.slower and slow.verdict is not None and slow.verdict.error < 1e-4
        assert slow.fault.endswith("of torch's time") and slow.verdict.engine_s > slow.verdict.torch_s
        assert refusal_of(entry) == Refusal("slower", slow.fault) and maker.find(DECODER) is not None
        monkeypatch.setattr(Slow, "open", lambda *_: pytest.fail("it is not tried again"))
        assert build_and_judge(maker, [DECODER], samples, 60.0)[DECODER] == Built(None, slow.fault, slower=True)
    finally:
        allow(entry)
    judged = build_and_judge(OnnxMaker(sdxl_folder, maker.cache, 1), [DECODER], samples, 60.0)[DECODER]
    assert judged.path is not None, "its mark was taken away"


@pytest.mark.timeout(600)
def test_an_engine_that_cannot_be_timed_is_taken_for_its_numbers(
    sdxl_folder: Path, sdxl_engines: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room for both")

    monkeypatch.setattr("engines.trial.timed", full)
    built = build_and_judge(OnnxMaker(sdxl_folder, EngineCache(sdxl_engines), 1), [DECODER], samples, 60.0)[DECODER]
    assert built.path is not None and built.verdict is not None and built.verdict.accepted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["unet", DECODER])
def test_torch_is_timed_in_the_precision_in_which_it_serves(sdxl_folder: Path, name: str, dtype: torch.dtype) -> None:
    network = networks_of(sdxl_folder)[name]
    sizes = {"batch": 2, "height": 8, "width": 8, "tokens": 20}
    inputs = examples(network.signature, {symbol: sizes[symbol] for symbol in network.signature.symbols})
    with torch.inference_mode():
        (got,) = outputs_of(_serving(network, "cpu", dtype)(*inputs))
        (wanted,) = outputs_of(network.load()(*inputs))
    assert got.dtype == dtype and 0.0 < largest_error(got, wanted) < TOLERANCE["bf16"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["load", "call"])
def test_an_engine_that_hangs_while_it_is_tried_is_rejected(
    sdxl_folder: Path, sdxl_engines: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Hanging(OnnxMaker):
        def open(self, path: Path) -> Any:
            return time.sleep(60.0) if where == "load" else lambda *_: time.sleep(60.0)

        def discard(self, name: str, path: Path) -> None:
            discarded.append(name)

    discarded: list[str] = []
    built = build_and_judge(Hanging(sdxl_folder, EngineCache(sdxl_engines), 1), [DECODER], samples, 0.5)[DECODER]
    assert built.path is None and built.fault == "it did not answer within 0.5 s" and discarded == [DECODER]


class EightBits(OnnxMaker):
    """Of a model whose card asks for int8 in the decoder."""

    def networks(self) -> Any:
        networks = super().networks()
        return {**networks, DECODER: replace(networks[DECODER], eight="int8")}


@pytest.mark.timeout(600)
def test_8_bits_are_scaled_on_one_half_of_the_inputs_and_judged_on_the_other(
    sdxl_folder: Path, cache: EngineCache, sdxl_engines: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker, scaled_on = EightBits(sdxl_folder, EngineCache(sdxl_engines), 1), list[Any]()
    build = OnnxMaker.build
    monkeypatch.setattr(
        OnnxMaker, "build", lambda self, name, given: scaled_on.extend(given) or build(self, name, given)
    )
    monkeypatch.setattr("engines.trial.timed", lambda *_: pytest.fail("who asks for 8 bits does not ask for speed"))
    if (left := maker.find(DECODER)) is not None:  # by another test with the same cache
        maker.discard(DECODER, left)
    assert build_and_judge(maker, [DECODER], {}, 60.0)[DECODER].fault.startswith("vae/decoder in int8 needs inputs")
    built = build_and_judge(maker, [DECODER], samples, 60.0)[DECODER]
    assert built.path is not None and built.verdict is not None and 1e-4 < built.verdict.error < 0.25
    given = [torch.from_numpy(one[0]) for one in samples[DECODER]]
    assert [torch.equal(one[0], wanted) for one, wanted in zip(scaled_on, given[::2], strict=True)] == [True, True]
    plain = find(sdxl_folder, cache)[DECODER]
    assert built.path == maker.find(DECODER) != plain and maker.numerics(built.path) != maker.numerics(plain)
    monkeypatch.setattr("engines.trial.EIGHT_TOLERANCE", {"int8": 1e-4})
    refused = build_and_judge(maker, [DECODER], samples, 60.0)[DECODER]
    assert "tolerated is 1.0e-04" in refused.fault and maker.find(DECODER) is None and plain.exists()
