"""Engines that take over from torch while a worker serves, and torch that takes over from engines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.background import Background, Done
from engines.cache import EngineCache
from engines.life import Built, EngineLife, Samples
from engines.prepare import find
from engines.session import OnnxSession
from models.families import image_to_video
from models.families.image_to_video import ImageToVideoModel
from models.spec.model import ModelSpec
from service.jobs.job import JobState
from service.metrics import WorkerMetrics
from service.settings import ZOO, Settings
from service.worker import loop
from service.worker import upgrades as module
from service.worker.opening import load_model
from service.worker.placement import placement
from service.worker.residency import LoadedModel
from service.worker.upgrades import Upgrades, engine_life
from tests.support.rig import Rig, a_picture, alone, make_request
from tests.support.tiny_towers import write_tiny_svd

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes


class Build:
    """A build that ends when it is told to, of engines that lie in a cache."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths, self.fault, self.ready = paths, "", False
        self.asked: list[tuple[Sequence[str], Samples]] = []

    def __call__(self, folder: Path, settings: Settings, names: Sequence[str], samples: Samples) -> Build:
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

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        super().__init__(folder, loaded, load=self._open)
        settings = Settings(data=folder, backend="onnxruntime", engines="background", threads=1)
        self.upgrades = Upgrades(settings, placement(settings), self._load, self.metrics)
        self.build: Build

    def _open(self, spec: ModelSpec) -> LoadedModel:
        return self.upgrades.open(spec)

    def _load(self, spec: ModelSpec, engines: EngineLife) -> LoadedModel:
        return load_model(spec, Settings(backend="onnxruntime", threads=1), engines=engines)

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
    monkeypatch.setattr(module, "_begin", build)
    rig = Upgraded(tmp_path / "worker", loaded)
    rig.build = build
    yield rig
    rig.close()


def test_rows_in_flight_finish_on_torch_and_later_ones_run_on_engines(
    upgraded: Upgraded, loaded: LoadedModel, on_engines: LoadedModel
) -> None:
    assert upgraded.look() == [] and not upgraded.build.asked
    first = upgraded.submit(seed=1)
    upgraded.finish(first)
    assert upgraded.look() == [] and upgraded.value("darkroom_engines", state="building") == 3
    ((names, samples),) = upgraded.build.asked
    assert set(names) == {"unet", "vae/decoder", "vae/encoder"} and samples["unet"] and samples["vae/decoder"]
    before = [upgraded.submit(seed=seed, num_inference_steps=9) for seed in (2, 3)]
    upgraded.tick_until(lambda: upgraded.value("darkroom_pieces_in_flight") == 2)
    upgraded.worker.tick()
    upgraded.build.ready = True
    assert upgraded.look() == ["tiny-xl"] and upgraded.value("darkroom_engines", state="engine") == 3
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
    assert upgraded.value("darkroom_engines", state="engine") == 2, "the decoder's is sound"
    mixed = {result.numerics_id for job in jobs for result in upgraded.get(job).results}
    assert len(mixed) == 1 and not mixed & {loaded.strict.id}
    for job, seed in zip(jobs, (5, 6), strict=True):  # the same but for the decoder's roundings
        assert len(upgraded.contents(job)[0]) == pytest.approx(len(alone(loaded, make_request(seed=seed))[0]), rel=0.1)


def test_engines_that_are_refused_leave_torch_in_place(upgraded: Upgraded, loaded: LoadedModel) -> None:
    upgraded.build.fault = "its largest error is 1.0e+00 of the largest output"
    upgraded.finish(upgraded.submit(seed=1))
    upgraded.look()
    upgraded.build.ready = True
    assert upgraded.look() == [] and upgraded.value("darkroom_engine_fallbacks_total", reason="rejected") == 3
    job = upgraded.submit(seed=2)
    upgraded.finish(job)
    assert upgraded.contents(job) == alone(loaded, make_request(seed=2))
    assert len(upgraded.build.asked) == 1, "it is not tried again"
    upgraded.look()
    assert upgraded.value("darkroom_engine_fallbacks_total", reason="rejected") == 3


def test_who_waits_for_engines(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[str] = []
    monkeypatch.setattr(module, "_built", lambda network, _: built.append(network.name) or Built(None, "here"))
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


def test_builds_are_made_one_at_a_time(tmp_path: Path, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Build] = []

    def begin(*arguments: Any) -> Build:
        builds.append(Build({"unet": Path("x"), "vae/decoder": Path("y"), "vae/encoder": Path("z")}))
        return builds[-1](*arguments)

    monkeypatch.setattr(module, "_begin", begin)
    lives: list[EngineLife] = []

    def keep(life: EngineLife) -> None:
        lives.append(life)

    settings = Settings(data=tmp_path, engines="background")
    upgrades = Upgrades(settings, placement(settings), lambda _, life: keep(life), WorkerMetrics())  # type: ignore[arg-type,return-value]
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
    build = module._begin(sdxl_folder, Settings(data=tmp_path), ("vae/decoder",), samples)
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
