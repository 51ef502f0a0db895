"""Who serves new rows while engines are built, when they were accepted, and when one fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.background import Done
from engines.cache import EngineCache
from engines.life import SCALES_FROM, Built, EngineFailed, EngineLife, Samples
from engines.maker import OnnxMaker
from engines.refused import Refusal, refusal_of
from engines.verdict import Verdict

GOOD = Verdict(True, "", 1e-6, 0.1, 0.2)
BAD = Verdict(False, "its largest error is 1.0e+00", 1.0, 0.1, 0.2)
NAMES = ("unet", "vae/decoder", "vae/encoder")
FILE = Path("network.onnx")


class Build:
    """A build that ends when it is told to."""

    def __init__(self) -> None:
        self.done: Done[dict[str, Built]] | None = None
        self.asked: list[tuple[Sequence[str], Samples]] = []

    def __call__(self, names: Sequence[str], samples: Samples) -> Build:
        self.asked.append((names, samples))
        return self

    def poll(self) -> Done[dict[str, Built]] | None:
        return self.done

    def stop(self) -> None:
        self.done = Done(None, "stopped", 0.0, 0)


def double(x: Tensor) -> Tensor:
    return x * 2.0


def begun() -> tuple[EngineLife, Build]:
    """A life whose build is under way."""
    build = Build()
    life = EngineLife({}, NAMES, build, awaited={"unet": 1, "vae/decoder": 1})
    for name in ("unet", "vae/decoder"):
        life.recorded(name, double)(torch.ones(2))
    life.begin()
    return life, build


def test_a_build_begins_when_torch_has_shown_what_inputs_occur() -> None:
    build = Build()
    life = EngineLife({}, NAMES, build, awaited={"unet": 1, "vae/decoder": 1})
    unet, decoder = life.recorded("unet", double), life.recorded("vae/decoder", double)
    assert set(life.states.values()) == {"building"} and not life.paths
    assert torch.equal(unet(torch.ones(2)), torch.full((2,), 2.0))
    life.begin()
    assert not build.asked and not life.waits and not life.builds, "the decoder was not called yet"
    decoder(torch.zeros(3))
    assert life.waits
    life.begin()
    (names, samples), unet_inputs = build.asked[0], build.asked[0][1]["unet"]
    assert list(names) == list(NAMES) and not samples["vae/encoder"] and len(samples["vae/decoder"]) == 1
    assert (unet_inputs[0][0] == 1.0).all() and life.builds
    life.begin()
    unet(torch.full((2,), 5.0))
    assert len(build.asked) == 1 and unet_inputs[0][0].shape == (2,)
    assert life.recorded("unet", double) is double, "nothing is kept any more"


def test_torch_serves_until_engines_were_accepted_each_by_itself() -> None:
    life, build = begun()
    assert not life.look() and not life.paths
    built = {"unet": Built(FILE, verdict=GOOD), "vae/decoder": Built(None, BAD.reason, BAD), "vae/encoder": Built(FILE)}
    build.done = Done(built, "", 12.5, 0)
    assert not life.paths, "new rows take them from the next look on"
    assert life.look() and life.paths == {"unet": FILE, "vae/encoder": FILE}
    assert life.states == {"unet": "engine", "vae/decoder": "rejected", "vae/encoder": "engine"}
    assert life.reasons == {"vae/decoder": BAD.reason} and life.verdicts == {"unet": GOOD, "vae/decoder": BAD}
    assert life.build_s == 12.5 and not life.builds and not life.waits and not life.look()


def test_torch_serves_for_good_when_the_build_failed() -> None:
    life, build = begun()
    build.done = Done(None, "its process was ended by SIGKILL", 3.0, 0)
    assert not life.look() and set(life.states.values()) == {"rejected"} and not life.paths
    assert set(life.reasons.values()) == {"its process was ended by SIGKILL"} and not life.waits


def test_without_a_builder_what_is_missing_stays_on_torch() -> None:
    life = EngineLife({"unet": Built(FILE), "vae/decoder": Built(None, "no")}, ["vae/encoder"])
    assert life.paths == {"unet": FILE} and life.states == {"unet": "engine", "vae/decoder": "rejected"}
    assert life.recorded("vae/encoder", double) is double and not life.waits


def test_a_variant_that_was_not_called_is_judged_on_its_networks_inputs() -> None:
    build = Build()
    life = EngineLife({}, ("transformer", "transformer/skip-layers", "vae/decoder"), build, awaited={"transformer": 1})
    life.recorded("transformer", double)(torch.ones(2, dtype=torch.bfloat16))
    life.begin()
    ((_, samples),) = build.asked
    assert samples["transformer"][0][0].dtype == np.float32, "which is what an engine is given"
    assert np.array_equal(samples["transformer/skip-layers"], samples["transformer"]) and not samples["vae/decoder"]


def test_an_engine_that_cannot_be_loaded_is_dropped(tmp_path: Path) -> None:
    maker = OnnxMaker(tmp_path, EngineCache(tmp_path), 1)
    life = EngineLife({"unet": Built(FILE), "vae/decoder": Built(FILE)}, maker=maker)
    with pytest.raises(EngineFailed, match="engine of unet cannot be loaded"):
        life.load("unet", tmp_path / FILE, maker)
    assert life.states["unet"] == "dropped" and life.paths == {"vae/decoder": FILE}


def failing(error: Exception) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        raise error

    return call


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (failing(RuntimeError("illegal memory access")), "RuntimeError: illegal memory access"),
        (lambda x: x * math.nan, "its output holds what is no number"),
        (lambda x: (x, x / 0.0), "its output holds what is no number"),
    ],
)
def test_an_engine_that_fails_in_service_is_dropped(engine: Any, reason: str) -> None:
    life = EngineLife({"unet": Built(FILE), "vae/decoder": Built(FILE)})
    with pytest.raises(EngineFailed, match="engine of unet"):
        life.guarded("unet", engine)(torch.ones(2))
    assert (life.states["unet"], life.reasons) == ("dropped", {"unet": reason})
    assert life.paths == {"vae/decoder": FILE}


@pytest.mark.parametrize("error", [ValueError("x has shape (1,)"), TypeError("expected 4 tensors"), MemoryError()])
def test_some_errors_are_not_the_engines_fault(error: Exception) -> None:
    def excused(raised: Exception) -> bool:
        return isinstance(raised, TypeError | ValueError | MemoryError)

    life = EngineLife({"unet": Built(FILE)}, excused=excused)
    with pytest.raises(type(error)):
        life.guarded("unet", failing(error))(torch.ones(2))
    assert torch.equal(life.guarded("unet", double)(torch.ones(2)), torch.full((2,), 2.0))  # type: ignore[arg-type]
    assert life.states == {"unet": "engine"}


def test_what_is_only_slower_is_no_fault() -> None:
    life = EngineLife({"unet": Built.refused(Refusal("slower", "it takes 1.30 of torch's time")), "vae": Built(FILE)})
    assert life.states == {"unet": "slower", "vae": "engine"} and life.paths == {"vae": FILE}
    assert life.reasons == {"unet": "it takes 1.30 of torch's time"}


class EightBits(OnnxMaker):
    """Of a model whose card asks for 8 bits in the denoiser."""

    def networks(self) -> Any:
        networks = super().networks()
        return {**networks, "unet": replace(networks["unet"], eight="int8")}


def test_scales_come_from_calls_that_are_spread_over_whole_rows(sdxl_folder: Path, tmp_path: Path) -> None:
    build, maker = Build(), EightBits(sdxl_folder, EngineCache(tmp_path), 1)
    life = EngineLife({}, NAMES, build, {"unet": 50, "vae/decoder": 1}, maker=maker)
    unet, decoder = life.recorded("unet", double), life.recorded("vae/decoder", double)
    assert life.calibrates("unet") and not life.calibrates("vae/decoder")
    decoder(torch.ones(1))
    for step in range(49):
        unet(torch.full((4, 2), float(step)))
    assert not life.waits, "two rows are not over yet"
    unet(torch.full((4, 2), 49.0))
    life.begin()
    ((_, samples),) = build.asked
    seen = [sample[0] for sample in samples["unet"]]
    assert len(seen) <= SCALES_FROM and {one.shape for one in seen} == {(2, 2)}
    assert [one[0, 0] for one in seen] == list(range(0, 50, 2)), "as far apart each time"
    build.done = Done({name: Built(None, "no") for name in NAMES}, "", 1.0, 0)
    assert life.look(), "its model is opened anew without a recorder"
    assert not life.calibrates("unet") and not life.look()


def test_an_engine_that_does_not_answer_is_marked_until_it_does(tmp_path: Path) -> None:
    path = tmp_path / "entry" / "network.onnx"
    life = EngineLife({"unet": Built(path)}, hung_s=0.2)
    seen: list[Refusal | None] = []

    def slow(x: Tensor) -> Tensor:
        deadline = time.monotonic() + 60.0
        while refusal_of(path.parent) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(refusal_of(path.parent))
        return x

    try:
        call = life.guarded("unet", cast(Any, slow))
        call(torch.ones(2))
        assert seen == [Refusal("rejected", "a call of it did not come back within 0.2 s")]
        assert refusal_of(path.parent) is None and life.states == {"unet": "engine"}, "it came back"
    finally:
        life.stop()
