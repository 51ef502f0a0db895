"""Who serves new rows while an engine is built, when it was accepted, and when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.background import Done
from engines.cache import EngineCache
from engines.call import examples
from engines.life import Built, EngineLife, build_and_judge
from engines.networks import networks_of
from engines.verdict import Verdict

GOOD = Verdict(True, "", 1e-6, 0.1, 0.2)
BAD = Verdict(False, "its largest error is 1.0e+00", 1.0, 0.1, 0.2)


class Build:
    """A build that ends when it is told to."""

    def __init__(self) -> None:
        self.done: Done[Built] | None = None

    def poll(self) -> Done[Built] | None:
        return self.done

    def end(self, verdict: Verdict | None, fault: str = "") -> None:
        built = None if verdict is None else Built(Path("network.onnx"), verdict)
        self.done = Done(built, fault, 12.5, 0)


def on_torch(x: Tensor) -> Tensor:
    return x


def on_engine(x: Tensor) -> Tensor:
    return x


def begun() -> tuple[EngineLife, Build]:
    build = Build()
    return EngineLife(on_torch, build, lambda path: on_engine if path.name == "network.onnx" else on_torch), build


def test_torch_serves_until_the_engine_was_accepted() -> None:
    life, build = begun()
    assert not life.look() and life.state == "building" and life.network is on_torch
    build.end(GOOD)
    assert life.network is on_torch  # new rows take it from the next look on
    assert life.look() and life.state == "engine" and life.network is on_engine
    assert (life.build_s, life.verdict, life.reason) == (12.5, GOOD, "")
    assert not life.look()


@pytest.mark.parametrize(
    ("verdict", "fault", "reason"),
    [(BAD, "", BAD.reason), (None, "its process was ended by SIGKILL", "its process was ended by SIGKILL")],
)
def test_torch_serves_for_good_when_there_is_no_engine(verdict: Verdict | None, fault: str, reason: str) -> None:
    life, build = begun()
    build.end(verdict, fault)
    assert life.look() and life.state == "rejected" and life.reason == reason and life.network is on_torch
    assert not life.look()


def test_an_engine_that_cannot_be_opened_is_rejected() -> None:
    def refuse(path: Path) -> object:
        raise OSError("no space left")

    build = Build()
    life = EngineLife(on_torch, build, refuse)  # type: ignore[arg-type]
    build.end(GOOD)
    assert life.look() and (life.state, life.reason) == ("rejected", "OSError: no space left")
    assert life.network is on_torch


def test_an_engine_that_fails_in_service_is_dropped() -> None:
    life, build = begun()
    build.end(GOOD)
    life.look()
    life.fail(RuntimeError("illegal memory access"))
    assert (life.state, life.reason) == ("dropped", "RuntimeError: illegal memory access")
    assert life.network is on_torch
    assert not life.look()


@pytest.mark.timeout(600)
def test_the_work_of_a_build_on_real_inputs(sdxl_folder: Path, sdxl_engines: Path, cache: EngineCache) -> None:
    signature = networks_of(sdxl_folder)["vae/decoder"].signature
    samples = [tuple(t.numpy() for t in examples(signature, {"batch": 2, "height": 3, "width": 5}))]
    threads = torch.get_num_threads()
    try:
        built = build_and_judge(sdxl_folder, "vae/decoder", sdxl_engines, "fp32", samples, 60.0)
    finally:
        torch.set_num_threads(threads)
    assert built.path.exists() and built.verdict.accepted and built.verdict.error < 1e-4
    with pytest.raises(ValueError, match="network 'refiner' is none of tiny-xl, which has unet"):
        build_and_judge(sdxl_folder, "refiner", sdxl_engines, "fp32", samples, 60.0)
