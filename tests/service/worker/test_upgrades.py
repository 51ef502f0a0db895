"""Engines that take over from torch while a worker serves, and torch that takes over from engines."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engines import plan, trial
from engines.background import Background, Done
from engines.cache import KEY, EngineCache
from engines.life import Built, EngineLife, Samples
from engines.maker import Maker, OnnxMaker
from engines.plan_maker import PlanMaker
from engines.prepare import find
from engines.refused import Refusal, allow, refuse
from engines.session import OnnxSession
from engines.trial import build_and_judge
from models.adapters.file import read_adapter
from models.adapters.fuse import Weighted
from models.adapters.whole import AdapterSet
from models.families import image_to_video
from models.families.image_to_video import ImageToVideoModel
from models.spec.model import ModelSpec
from models.weights import load_unet
from service.heartbeat import EXIT_CODE
from service.jobs.job import Adapter, JobState
from service.metrics import WorkerMetrics
from service.settings import ZOO, Settings
from service.worker import loop
from service.worker import upgrades as module
from service.worker.adapted import AdaptedModels
from service.worker.loaded import LoadedModel
from service.worker.opening import load_model
from service.worker.placement import Placement, placement
from service.worker.upgrades import MakerOf, Upgrades, check_backend, engine_life, maker_of, start_build
from tests.support.adapters import low_rank, write_peft
from tests.support.fixed import FixedMaker
from tests.support.rig import Rig, a_picture, alone, denoised, make_request, pixels_of
from tests.support.tiny_towers import write_tiny_svd

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes


NETWORKS = {"unet", "vae/decoder", "vae/encoder", "text_encoder", "text_encoder_2"}


class Build:
    """A build that ends when it is told to, of engines that lie in a cache."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths, self.fault, self.ready = paths, "", False
        self.asked: list[tuple[Sequence[str], Samples]] = []

    def __call__(self, maker: Maker, names: Sequence[str], samples: Samples) -> Build:
        self.asked.append((names, samples))
        return self

    def poll(self) -> Done[dict[str, Built]] | None:
        if not self.ready:
            return None
        built = {name: Built(None if self.fault else path, self.fault) for name, path in self.paths.items()}
        return Done(built, "", 1.0, 0)

    def stop(self) -> None:
        self.ready = True


class Upgraded(Rig):
    """A worker whose models get engines."""

    def __init__(
        self, folder: Path, loaded: LoadedModel, build: Build, make: MakerOf = maker_of, shelf: Path | None = None
    ) -> None:
        installed = {} if shelf is None else {file.stem: file for file in shelf.glob("*.safetensors")}
        adapted = AdaptedModels(lambda spec, chosen: self.upgrades.open(spec, chosen), lambda: installed)
        super().__init__(folder, loaded, load=self._open, adapted=adapted)
        settings = Settings(data=folder, backend="onnxruntime", engines="background", threads=1)
        self.build = build
        self.upgrades = Upgrades(settings, placement(settings), self._load, self.metrics, make, build)

    def _open(self, spec: ModelSpec) -> LoadedModel:
        return self.upgrades.open(spec)

    def _load(self, spec: ModelSpec, engines: EngineLife, adapters: AdapterSet | None) -> LoadedModel:
        return load_model(spec, Settings(backend="onnxruntime", threads=1), engines=engines, adapters=adapters)

    def paths(self, name: str) -> dict[str, Path]:
        """The engines of a model."""
        return dict(self.upgrades._lives[name, ""][1].paths)

    def look(self) -> list[str]:
        """What the worker's process does about once a second."""
        names = self.upgrades.look()
        self.residency.reopen(names)
        return names

    def upgraded(self) -> None:
        """Have the first picture made by torch, and the engines built and taken."""
        self.finish(self.submit(seed=1))
        self.look()
        self.build.ready = True
        assert self.look() == ["tiny-xl"]


@pytest.fixture
def on_engines(loaded: LoadedModel, sdxl_engines: Path, tmp_path: Path) -> LoadedModel:
    """The model on engines from its first row on."""
    (tmp_path / "engines").symlink_to(sdxl_engines)
    settings = Settings(data=tmp_path, backend="onnxruntime", engines="cached", threads=1)
    return load_model(loaded.model.spec, settings)


@pytest.fixture
def upgraded(
    tmp_path: Path, loaded: LoadedModel, sdxl_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Upgraded]:
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    build = Build(find(loaded.model.spec.folder, EngineCache(sdxl_engines)))
    rig = Upgraded(tmp_path / "worker", loaded, build)
    yield rig
    rig.close()


def test_rows_in_flight_finish_on_torch_and_later_ones_run_on_engines(
    upgraded: Upgraded, loaded: LoadedModel, on_engines: LoadedModel
) -> None:
    assert upgraded.look() == [] and not upgraded.build.asked
    first = upgraded.submit(seed=1)
    upgraded.finish(first)
    assert upgraded.look() == [] and upgraded.value("darkroom_engines", state="building") == len(NETWORKS)
    ((names, samples),) = upgraded.build.asked
    assert set(names) == NETWORKS and all(samples[name] for name in NETWORKS - {"vae/encoder"})
    before = [upgraded.submit(seed=seed, num_inference_steps=9) for seed in (2, 3)]
    upgraded.tick_until(lambda: upgraded.value("darkroom_pieces_in_flight") == 2)
    upgraded.worker.tick()
    upgraded.build.ready = True
    assert upgraded.look() == ["tiny-xl"] and upgraded.value("darkroom_engines", state="engine") == len(NETWORKS)
    after = [upgraded.submit(seed=seed, num_inference_steps=9) for seed in (2, 4)]
    upgraded.finish(*before, *after)
    jobs = [first, *before, *after]
    assert {upgraded.get(job).state for job in jobs} == {JobState.COMPLETED}
    makers = [loaded, loaded, loaded, on_engines, on_engines]
    requests = [make_request(seed=1), *(make_request(seed=seed, num_inference_steps=9) for seed in (2, 3, 2, 4))]
    for job, maker, request in zip(jobs, makers, requests, strict=True):
        assert upgraded.contents(job) == alone(maker, request)
        assert {result.numerics_id for result in upgraded.get(job).results} == {maker.strict.id}
    assert loaded.strict.id != on_engines.strict.id
    on_torch, serving = (model.networks["denoiser"].identity for model in (loaded, on_engines))
    upgraded.tick_until(lambda: upgraded.look() == [] and on_torch not in upgraded.residency.memory.networks)
    assert serving in upgraded.residency.memory.networks
    assert upgraded.value("darkroom_engine_fallbacks_total", reason="dropped") == 0


INK, WOOL = (Adapter(name=name, scale=1.0) for name in ("ink", "wool"))


@pytest.fixture
def shelf(sdxl_folder: Path, tmp_path: Path) -> Path:
    """Two adapters, each of which changes every attention of the UNet."""
    unet = load_unet(sdxl_folder)
    layers = [name.removesuffix(".weight") for name, _ in unet.named_parameters() if name.endswith("to_q.weight")]
    (tmp_path / "loras").mkdir()
    for number, name in enumerate(("ink", "wool")):
        write_peft(tmp_path / "loras" / f"{name}.safetensors", low_rank(unet, layers, number), "unet.")
    return tmp_path / "loras"


def set_of(spec: ModelSpec, shelf: Path, *adapters: Adapter) -> AdapterSet:
    files = [(read_adapter(shelf / f"{adapter.name}.safetensors"), adapter.scale) for adapter in adapters]
    return AdapterSet.of(spec, [Weighted(file, scale) for file, scale in files])


@pytest.fixture
def with_sets(
    tmp_path: Path, loaded: LoadedModel, sdxl_engines: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Upgraded]:
    """A worker with the plain model's engines in its cache, and none of a set."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    (tmp_path / "worker" / "engines").mkdir(parents=True)
    for path in find(loaded.model.spec.folder, EngineCache(sdxl_engines)).values():
        (tmp_path / "worker" / "engines" / path.parent.name).symlink_to(path.parent)
    build = Build(find(loaded.model.spec.folder, EngineCache(sdxl_engines)))
    rig = Upgraded(tmp_path / "worker", loaded, build, shelf=shelf)
    yield rig
    rig.close()


def test_a_set_of_adapters_gets_engines_when_it_was_used_often(
    with_sets: Upgraded, loaded: LoadedModel, on_engines: LoadedModel, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SET_ROWS", 2)
    spec, rig = loaded.model.spec, with_sets
    on_torch = load_model(spec, Settings(backend="torch", threads=1), adapters=set_of(spec, shelf, INK))
    first, plain = rig.submit(seed=1, loras=(INK,)), rig.submit(seed=1)
    rig.finish(first, plain)
    assert rig.look() == [] and not rig.build.asked, "one picture is not often"
    made = rig.upgrades._lives[spec.name, set_of(spec, shelf, INK).identity][1]
    assert made.states == {**dict.fromkeys(NETWORKS, "engine"), "unet": "building"}
    second, other = (
        rig.submit(seed=2, num_inference_steps=2 * spec.steps, loras=(INK,)),
        rig.submit(seed=1, loras=(WOOL,)),
    )
    rig.finish(second, other)
    assert rig.look() == [] and [tuple(names) for names, _ in rig.build.asked] == [("unet",)]
    rig.build.ready = True
    assert rig.look() == [spec.name]
    third, again = rig.submit(seed=1, loras=(INK,)), rig.submit(seed=1)
    rig.finish(third, again)
    assert rig.contents(first) != rig.contents(other) and rig.contents(first) != rig.contents(plain)
    assert rig.contents(plain) == rig.contents(again)
    # The engine that this build stands in with is the plain model's.
    assert rig.contents(third) == alone(on_engines, third.request)  # type: ignore[arg-type]
    ids = [rig.get(job).results[0].numerics_id for job in (first, second, third, plain)]
    assert ids[0] == ids[1] and len(set(ids[1:])) == 3
    fused = on_torch.networks["denoiser"].identity
    rig.tick_until(lambda: rig.look() == [] and fused not in rig.residency.memory.networks)


class Builds(Build):
    """Builds in this process, for real."""

    def __init__(self) -> None:
        super().__init__({})

    def __call__(self, maker: Maker, names: Sequence[str], samples: Samples) -> Builds:
        self.asked.append((names, samples))
        self.built = build_and_judge(maker, names, samples, 60.0)
        return self

    def poll(self) -> Done[dict[str, Built]] | None:
        return Done(self.built, "", 1.0, 0)


@pytest.mark.slow
def test_the_engine_of_a_set_computes_what_its_fused_networks_do(
    tmp_path: Path, loaded: LoadedModel, with_sets: Upgraded, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SET_ROWS", 1)
    monkeypatch.setattr(trial, "timed", lambda found, *_: found)  # on a busy machine a tiny network may be slower
    rig = Upgraded(tmp_path / "worker", loaded, Builds(), shelf=shelf)
    spec, sets = loaded.model.spec, [(INK,), (WOOL,), (INK, WOOL)]
    for chosen in sets:
        rig.finish(rig.submit(seed=1, num_inference_steps=spec.steps, loras=chosen))
    for _ in sets:
        rig.look(), rig.look()
    assert [tuple(names) for names, _ in rig.build.asked] == [("unet",)] * 3
    jobs = [rig.submit(seed=5, loras=chosen) for chosen in sets]
    rig.finish(*jobs)
    ids = set()
    for chosen, job in zip(sets, jobs, strict=True):
        adapters = set_of(spec, shelf, *chosen)
        on_torch = load_model(spec, Settings(backend="torch", threads=1), adapters=adapters)
        settings = Settings(data=tmp_path / "worker", backend="onnxruntime", engines="cached", threads=1)
        on_engines = load_model(spec, settings, adapters=adapters)
        assert rig.contents(job) == alone(on_engines, job.request)  # type: ignore[arg-type]
        ours, theirs, plain = (
            pixels_of(denoised(one, job.request, 5)).astype(int)
            for one in (on_engines, on_torch, loaded)  # type: ignore[arg-type]
        )
        assert np.abs(ours - theirs).max() <= 2
        assert np.abs(ours - plain).max() > 2, "the plain model's is another"
        ids.add(rig.get(job).results[0].numerics_id)
    assert len(ids) == 3 and on_torch.strict.id not in ids
    rig.close()


def test_sets_without_end_are_forgotten(
    tmp_path: Path, loaded: LoadedModel, with_sets: Upgraded, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETS", 2)
    spec, upgrades = loaded.model.spec, with_sets.upgrades
    upgrades.open(spec)
    sets = [set_of(spec, shelf, Adapter(name="ink", scale=scale)) for scale in (0.1, 0.2, 0.3)]
    for one in sets:
        upgrades.open(spec, one)
    assert set(upgrades._lives) == {(spec.name, key) for key in ("", sets[1].identity, sets[2].identity)}


def nothing(_session: OnnxSession, *inputs: Tensor) -> Tensor:
    return inputs[0] * math.nan


def broken(_session: OnnxSession, *_inputs: Tensor) -> Tensor:
    raise RuntimeError("illegal instruction")


@pytest.mark.parametrize("poison", [nothing, broken])
def test_an_engine_that_fails_in_service_costs_no_request(
    upgraded: Upgraded, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, poison: Any
) -> None:
    upgraded.upgraded()
    jobs = [upgraded.submit(seed=seed) for seed in (5, 6)]
    upgraded.tick_until(lambda: upgraded.value("darkroom_pieces_in_flight") == 2)
    upgraded.worker.tick()
    whole = OnnxSession.__call__
    monkeypatch.setattr(
        OnnxSession,
        "__call__",
        lambda session, *inputs: (poison if len(inputs) > 1 else whole)(session, *inputs),  # the denoiser
    )
    upgraded.finish(*jobs)
    for job in jobs:
        ended = upgraded.get(job)
        assert ended.state is JobState.COMPLETED and ended.attempts == 1
    upgraded.look()
    assert upgraded.value("darkroom_engine_fallbacks_total", reason="dropped") == 1
    assert upgraded.value("darkroom_engines", state="dropped") == 1
    assert upgraded.value("darkroom_engines", state="engine") == len(NETWORKS) - 1, "the others are sound"
    mixed = {result.numerics_id for job in jobs for result in upgraded.get(job).results}
    assert len(mixed) == 1 and not mixed & {loaded.strict.id}
    for job, seed in zip(jobs, (5, 6), strict=True):  # the same but for the decoder's roundings
        assert len(upgraded.contents(job)[0]) == pytest.approx(len(alone(loaded, make_request(seed=seed))[0]), rel=0.1)


def test_engines_that_are_refused_leave_torch_in_place(upgraded: Upgraded, loaded: LoadedModel) -> None:
    upgraded.build.fault = "its largest error is 1.0e+00 of the largest output"
    upgraded.finish(upgraded.submit(seed=1))
    upgraded.look()
    upgraded.build.ready = True
    assert upgraded.look() == [] and upgraded.value("darkroom_engine_fallbacks_total", reason="rejected") == len(
        NETWORKS
    )
    job = upgraded.submit(seed=2)
    upgraded.finish(job)
    assert upgraded.contents(job) == alone(loaded, make_request(seed=2))
    assert len(upgraded.build.asked) == 1, "it is not tried again"
    upgraded.look()
    assert upgraded.value("darkroom_engine_fallbacks_total", reason="rejected") == len(NETWORKS)


def build_at_once(maker: Maker, names: Sequence[str], samples: Samples) -> Build:
    """As a build in a process of its own, without the process."""
    build = Build({})
    done = Done(build_and_judge(maker, names, samples, 60.0), "", 1.0, 0)
    build.poll = lambda: done  # type: ignore[method-assign]
    return build


def decoded(png: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(png)), np.float64)


def test_8_bits_that_a_card_asks_for_serve_new_rows_under_numerics_of_their_own(
    tmp_path: Path, loaded: LoadedModel, sdxl_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    shutil.copytree(loaded.model.spec.folder, folder := tmp_path / "models" / "tiny-xl")
    (folder / "darkroom.json").write_text(json.dumps({"steps": 3, "eight_bits": {"unet": "int8", "vae": "int8"}}))
    shutil.copytree(sdxl_engines, tmp_path / "worker" / "engines")
    eight = load_model(ModelSpec.read(folder), Settings(backend="torch", threads=1))
    assert eight.strict.id == loaded.strict.id, "torch knows no 8 bits"
    rig = Upgraded(tmp_path / "worker", eight, build_at_once)  # type: ignore[arg-type]
    try:
        jobs = [rig.submit(seed=1)]
        rig.finish(jobs[0])
        rig.look()
        assert rig.value("darkroom_engines", state="engine") == len(NETWORKS) - 2, "the others' graphs are there"
        assert rig.value("darkroom_engines", state="building") == 2
        while rig.look() == []:  # until two rows were seen, each from its first step to its decoding
            jobs.append(rig.submit(seed=len(jobs) + 1))
            rig.finish(jobs[-1])
            assert len(jobs) < 8
        assert rig.value("darkroom_engines", state="engine") == len(NETWORKS) and len(jobs) > 1
        assert rig.value("darkroom_engine_fallbacks_total", reason="rejected") == 0
        after = rig.submit(seed=1)
        rig.finish(after)
        way = rig.residency.request("tiny-xl").result()
        keys = [json.loads((path.parent / KEY).read_text())["precision"] for path in rig.paths("tiny-xl").values()]
        assert sorted(keys) == ["fp32"] * (len(NETWORKS) - 2) + ["int8 in fp32"] * 2
        before, *later = ({result.numerics_id for result in rig.get(job).results} for job in (*jobs, after))
        assert later == [*[before] * (len(jobs) - 1), {way.strict.id}] and before != {way.strict.id}
        assert rig.contents(after) == alone(way, rig.get(after).request), "a row's bytes are its own in 8 bits too"
        one, same, other = (decoded(rig.contents(job)[0]) for job in (jobs[0], after, jobs[1]))
        assert 0.0 < abs(one - same).mean() < 0.5 * abs(one - other).mean()
    finally:
        rig.close()


class Plans:
    """Engines of fixed shapes, for 32 x 32 and prompts of one chunk, and a build of them."""

    def __init__(self, folder: Path, loaded: LoadedModel, engines: Path) -> None:
        self.calls: Counter[str] = Counter()
        self.broken_loads: set[str] = set()
        self.broken_calls: set[str] = set()
        cache = EngineCache(engines)
        self.maker = FixedMaker(
            loaded.model.spec.folder, cache, 1, before_load=self._load, before_call=self._call
        )  # fmt: skip
        paths = find(loaded.model.spec.folder, cache)
        build = Build({name: paths[name] for name in self.maker.lanes})
        self.rig = Upgraded(folder, loaded, build, lambda *_: self.maker)

    def way(self) -> LoadedModel:
        """The model as it is open now."""
        return self.rig.residency.request("tiny-xl").result()

    def _load(self, name: str) -> None:
        if name in self.broken_loads:
            raise RuntimeError("another driver")

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.broken_calls:
            raise RuntimeError("illegal instruction")


@pytest.fixture
def plans(tmp_path: Path, loaded: LoadedModel, sdxl_engines: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plans]:
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    plans = Plans(tmp_path / "worker", loaded, sdxl_engines)
    yield plans
    plans.rig.close()


def test_rows_begin_on_plans_where_their_shape_fits(plans: Plans, loaded: LoadedModel) -> None:
    rig = plans.rig
    before = rig.submit(seed=1)
    rig.finish(before)
    rig.look()
    ((names, samples),) = rig.build.asked
    assert set(names) == {"unet", "vae/decoder"} and samples["unet"] and samples["vae/decoder"]
    late = rig.submit(seed=2, num_inference_steps=9)
    rig.tick_until(lambda: rig.value("darkroom_pieces_in_flight") == 1)
    rig.worker.tick()
    rig.build.ready = True
    assert rig.look() == ["tiny-xl"] and rig.value("darkroom_engines", state="engine") == 2 and not plans.calls
    rig.finish(late)
    assert not plans.calls, "rows in flight stay on torch"
    fits, fast = rig.submit(seed=3), rig.submit(seed=4, deterministic=False)
    wide, long = rig.submit(seed=3, width=64), rig.submit(seed=3, prompt="a red cat " * 30)
    rig.finish(fits, fast, wide, long)
    assert plans.calls["vae/decoder"] == 3 and plans.calls["unet"] in (4, 8)
    (on_plans, without_decoder, without_unet, on_torch) = plans.way().ways
    assert on_torch.strict == loaded.strict and on_torch.fast == loaded.fast
    ids = {way.strict.id for way in (on_plans, without_decoder, without_unet, on_torch)}
    assert len(ids) == 4 and on_plans.strict.padded_lanes == on_plans.fast.max_lanes == 8
    makers = [
        (before, loaded),
        (late, loaded),
        (fits, on_plans),
        (fast, on_plans),
        (wide, loaded),
        (long, without_unet),
    ]
    for job, maker in makers:
        request = rig.get(job).request
        wanted = maker.numerics(request.deterministic)
        assert [result.numerics_id for result in rig.get(job).results] == [wanted.id]
        if request.deterministic:
            assert rig.contents(job) == alone(maker, request)
    assert alone(on_plans, rig.get(fits).request) != alone(loaded, rig.get(wide).request)
    assert on_plans.networks["encoder"] is on_torch.networks["encoder"] is not on_plans.networks["decoder"]


def test_a_plan_that_fails_in_service_costs_no_request(plans: Plans, loaded: LoadedModel) -> None:
    rig = plans.rig
    rig.upgraded()
    jobs = [rig.submit(seed=seed) for seed in (5, 6)]
    rig.tick_until(lambda: plans.calls["unet"] > 1)
    plans.broken_calls.add("unet")
    rig.finish(*jobs)
    without_unet, on_torch = plans.way().ways
    for job, seed in zip(jobs, (5, 6), strict=True):
        assert rig.get(job).attempts == 1 and rig.contents(job) == alone(without_unet, make_request(seed=seed))
    rig.look()
    assert rig.value("darkroom_engine_fallbacks_total", reason="dropped") == 1
    assert on_torch.strict == loaded.strict != without_unet.strict


@pytest.mark.parametrize("limited", [False, True])
def test_a_plan_that_cannot_be_loaded_costs_no_request(plans: Plans, loaded: LoadedModel, limited: bool) -> None:
    rig = plans.rig
    if limited:  # no room beside torch's: it is loaded when it is its turn
        sizes = {network.identity: network.size_bytes for network in loaded.networks.values()}
        rig.residency._limit_bytes = int(1.1 * sum(sizes.values()))
    plans.broken_loads.add("unet")
    rig.upgraded()
    job = rig.submit(seed=5)
    rig.finish(job)
    (result,) = rig.get(job).results
    without_unet, _ = plans.way().ways
    assert result.numerics_id == without_unet.strict.id != loaded.strict.id
    rig.look()
    assert rig.value("darkroom_engines", state="dropped") == rig.value("darkroom_engines", state="engine") == 1


def test_a_checkpoint_is_taken_up_on_the_way_that_made_it(plans: Plans, loaded: LoadedModel) -> None:
    rig = plans.rig
    rig.upgraded()
    fits, wide = (rig.submit(seed=5, num_inference_steps=20, width=width) for width in (32, 64))
    rig.tick_until(lambda: rig.value("darkroom_pieces_in_flight") == 2)
    for _ in range(10):
        rig.worker.tick()
    for active in list(rig.worker._flight.jobs.values()):
        rig.worker._save(active)
    end = time.monotonic() + 60.0  # without ticks, which would go on with the jobs
    while rig.value("darkroom_checkpoints_total", outcome="written") < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    rig.lose_worker()
    rig.finish(fits, wide)
    assert rig.value("darkroom_resumed_steps_total") > 2
    for job, maker in ((fits, plans.way()), (wide, loaded)):
        assert rig.contents(job) == alone(maker, rig.get(job).request)


HANGS = """
import sys, time
from pathlib import Path
from service import heartbeat
import torch
from engines.life import Built, EngineLife
heartbeat.ALLOWED_S = 4.0
beats, engine = map(Path, sys.argv[1:])
life = EngineLife({"unet": Built(engine)}, hung_s=0.5)
call = life.guarded("unet", lambda x: time.sleep(600.0))
heartbeat.Heartbeat(beats).beat()
heartbeat.exit_when_overdue(beats)
call(torch.ones(1))
"""


def test_a_worker_that_hangs_in_an_engine_ends_and_the_next_one_serves_the_job(
    upgraded: Upgraded, loaded: LoadedModel, sdxl_engines: Path, tmp_path: Path
) -> None:
    engine = find(loaded.model.spec.folder, EngineCache(sdxl_engines))["unet"]
    job = upgraded.submit(seed=3)
    upgraded.tick_until(lambda: upgraded.value("darkroom_pieces_in_flight") == 1)
    hung = subprocess.run([sys.executable, "-c", HANGS, tmp_path / "beats", engine], cwd=ROOT, timeout=300)
    try:
        assert hung.returncode == EXIT_CODE, "the watchdog ended it"
        upgraded.lose_worker()  # its jobs are taken back
        (tmp_path / "engines").symlink_to(sdxl_engines)
        settings = Settings(data=tmp_path, backend="onnxruntime", engines="cached", threads=1)
        life = engine_life(loaded.model.spec, settings, placement(settings))
        assert life.states == {**dict.fromkeys(NETWORKS, "engine"), "unet": "rejected"}
        upgraded.finish(job)
        assert upgraded.get(job).state is JobState.COMPLETED
    finally:
        allow(engine.parent)
    assert engine_life(loaded.model.spec, settings, placement(settings)).states["unet"] == "engine"


@pytest.mark.parametrize("engines", ["cached", "background", "wait"])
def test_an_engine_that_hung_is_not_taken_by_the_next_process(
    loaded: LoadedModel, sdxl_engines: Path, tmp_path: Path, engines: Any
) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    spec, settings = loaded.model.spec, Settings(data=tmp_path, backend="onnxruntime", engines=engines, threads=1)
    entry = find(spec.folder, EngineCache(tmp_path / "engines"))["unet"].parent
    sound = engine_life(spec, settings, placement(settings))
    assert set(sound.states.values()) == {"engine"}
    refuse(entry, Refusal("rejected", "a call of it did not come back within 45 s"))
    try:
        life = engine_life(spec, settings, placement(settings))
    finally:
        allow(entry)
    assert life.states == {**sound.states, "unet": "rejected"} and not life.waits and "unet" not in life.paths
    assert life.reasons == {"unet": "a call of it did not come back within 45 s"}
    without, whole = (load_model(spec, settings, engines=one) for one in (life, sound))
    assert alone(without, make_request(seed=1))
    assert len({without.strict.id, whole.strict.id, loaded.strict.id}) == 3


def test_tensorrt_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = Placement(torch.device("cpu"), torch.float32), Placement(torch.device("cuda:0"), torch.bfloat16)
    for flavour in ("tensorrt", "tensorrt-rtx"):
        settings = Settings(backend=flavour)
        with pytest.raises(ValueError, match=f"backend is '{flavour}', which needs a GPU, and networks run on cpu"):
            Upgrades(settings, cpu, lambda *_: pytest.fail("nothing is opened"), WorkerMetrics())
    monkeypatch.setattr(plan, "MODULES", {"tensorrt": ("no_such_module",)})
    monkeypatch.setattr(module, "load_tensorrt", plan.load_tensorrt.__wrapped__)
    with pytest.raises(ValueError, match="backend is 'tensorrt': tensorrt is not installed"):
        check_backend(Settings(backend="tensorrt"), gpu)
    for backend in ("torch", "onnxruntime"):
        check_backend(Settings(backend=backend), gpu)


def test_what_a_worker_on_a_gpu_builds(tmp_path: Path, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is published for Linux on x86-64")
    place, polls = Placement(torch.device("cuda:1"), torch.float16), iter((False, False, True))
    spec, settings = ModelSpec.read(sdxl_folder), Settings(data=tmp_path, backend="tensorrt-rtx", engines="wait")
    builds: list[tuple[Maker, Sequence[str]]] = []
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)

    class Waited(Build):
        def poll(self) -> Done[dict[str, Built]] | None:
            self.ready = next(polls)
            return super().poll()

    def start(maker: Maker, names: Sequence[str], samples: Samples) -> Build:
        assert not samples
        builds.append((maker, names))
        return Waited({"unet": tmp_path / "network.plan", "vae/decoder": tmp_path / "network.plan"})

    for capability, target in (((8, 9), "sm89"), ((9, 0), "current")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        maker = maker_of(spec, settings, place)
        assert isinstance(maker, PlanMaker) and maker.architectures == (target,)
    assert (maker.precision, maker.lanes, maker.device) == ("fp16", (2, 8), "cuda:1")
    life = engine_life(spec, settings, place, start=start)
    ((built_by, names),) = builds
    assert isinstance(built_by, PlanMaker) and replace(built_by, cache=maker.cache) == maker
    assert names == ["unet", "vae/decoder"] and set(life.states.values()) == {"engine"}
    for engines in ("auto", "background", "cached"):
        settings = settings.model_copy(update={"engines": engines})
        life = engine_life(spec, settings, place, start=start)
        assert len(builds) == 1 and bool(life.states) is (engines != "cached"), "nobody waits on a GPU but who says so"
    assert maker_of(spec, settings.model_copy(update={"backend": "onnxruntime"}), place) is None
    assert maker_of(replace(spec, refiner=sdxl_folder), settings, place) is None


def test_who_waits_for_engines(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[str] = []
    monkeypatch.setattr(module, "_built", lambda _, name: built.append(name) or Built(None, "here"))
    shipped, clips, foreign = (ModelSpec.read(path) for path in (ZOO / "emoji-xl", ZOO / "emoji-svd", sdxl_folder))

    def life_of(spec: ModelSpec, engines: Any, **settings: Any) -> EngineLife:
        found = Settings(data=tmp_path, engines=engines, **settings)
        return engine_life(spec, found, placement(found))

    def waits(spec: ModelSpec, engines: Any) -> bool:
        built.clear()
        life = life_of(spec, engines)
        assert bool(life.reasons) is bool(built)
        return bool(built)

    assert [waits(spec, "auto") for spec in (shipped, clips, foreign)] == [True, False, False]
    assert all(waits(spec, "wait") for spec in (shipped, clips, foreign))
    assert not any(waits(spec, how) for spec in (shipped, foreign) for how in ("background", "cached"))
    assert life_of(foreign, "background").states and not life_of(foreign, "cached").states
    assert not any(life_of(shipped, "wait", **other).states for other in ({"backend": "torch"}, {"precision": "bf16"}))


def test_builds_are_made_one_at_a_time(tmp_path: Path, sdxl_folder: Path) -> None:
    builds: list[Build] = []

    def begin(*arguments: Any) -> Build:
        builds.append(Build({name: Path("x") for name in [*NETWORKS, "image_encoder"]}))
        return builds[-1](*arguments)

    lives: list[EngineLife] = []

    def keep(life: EngineLife) -> None:
        lives.append(life)

    settings = Settings(data=tmp_path, engines="background")
    place, metrics = placement(settings), WorkerMetrics()
    upgrades = Upgrades(settings, place, lambda _, life, __: keep(life), metrics, start=begin)  # type: ignore[arg-type,return-value]
    write_tiny_svd(tmp_path / "tiny-svd")
    for folder in (sdxl_folder, tmp_path / "tiny-svd"):
        upgrades.open(ModelSpec.read(folder))
    for life in lives:
        for name in ("unet", "vae/decoder"):
            life.recorded(name, lambda x: x)(torch.ones(1))
    assert upgrades.look() == [] and [life.builds for life in lives] == [True, False]
    builds[0].ready = True
    assert upgrades.look() == ["tiny-xl"] and [life.builds for life in lives] == [False, True]
    upgrades.close()
    assert builds[1].ready


@pytest.mark.slow
def test_a_real_build(tmp_path: Path, sdxl_folder: Path, sdxl_engines: Path) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    samples: Samples = {}
    maker = OnnxMaker(sdxl_folder, EngineCache(tmp_path / "engines"), threads=1)
    build = start_build(maker, ("vae/decoder",), samples)
    assert isinstance(build, Background)
    while (done := build.poll()) is None:
        pass
    assert done.value is not None and done.value["vae/decoder"].path is not None, done.fault


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_shipped_clip_is_the_same_on_engines_but_for_roundings(tmp_path: Path) -> None:
    spec, picture = ModelSpec.read(ZOO / "emoji-svd"), a_picture(size=(64, 64))
    engines = load_model(spec, Settings(data=tmp_path, engines="wait", threads=1))
    on_torch = load_model(spec, Settings(data=tmp_path, backend="torch", threads=1))
    assert engines.strict.padded_lanes == 0 and not engines.strict.lone_decode

    def clip(model: LoadedModel, seed: int) -> NDArray[np.int16]:
        assert isinstance(model.model, ImageToVideoModel)
        return image_to_video.generate(model.model, picture, seed).astype(np.int16)

    expected = clip(on_torch, 7)
    assert np.abs(clip(engines, 7) - expected).max() <= 2
    assert np.abs(clip(engines, 8) - expected).max() > 10
