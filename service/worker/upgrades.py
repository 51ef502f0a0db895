"""Who runs a model's networks: torch at once, engines as soon as there are any.

A model is opened with the engines that are there. What is missing is either waited for, or built in the background once
torch has shown what inputs occur; then the model is opened anew, for rows that begin from then on. An engine that fails
in service is left out of the next opening.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast, get_args

import torch

from engines.background import Background
from engines.cache import EngineCache
from engines.life import Build, Built, EngineLife, Samples, State, blames_the_call
from engines.maker import Maker, OnnxMaker
from engines.networks import Network
from engines.openvino_maker import OpenVinoMaker
from engines.openvino_session import openvino_version
from engines.plan import Flavour, load_tensorrt
from engines.plan_maker import DECODER, PlanMaker
from engines.precision import Precision
from engines.refused import refusal_of
from engines.trial import build_and_judge
from models.adapters.whole import AdapterSet
from models.spec.model import ModelSpec
from service.metrics import WorkerMetrics
from service.settings import ZOO, Settings, installed_adapters
from service.worker.loaded import LoadedModel
from service.worker.numerics import strict_lanes
from service.worker.placement import Placement
from service.worker.room import out_of_memory

logger = logging.getLogger(__name__)

BASE_BYTES, TIMES_WEIGHTS = 2 * 2**30, 6
"""Memory of a build: of the libraries, and of the weights in all the forms that they take on their way."""
CUDA_BASE_BYTES = 16 * 2**30
"""As ``BASE_BYTES``, where CUDA and a builder for it are among the libraries."""
EIGHT_ROWS = 2
"""So many rows are seen from their first step to their decoding before scales of 8 bits are made of them."""
BUILD_LIMIT_S = 2 * 3600.0
ANSWER_LIMIT_S = 600.0
"""For an engine to answer one call while it is judged."""
LOOK_EVERY_S = 0.5
"""At a build that is waited for."""

SET_ROWS = 8
"""Pictures that are made with a set of adapters before its engines are built, which takes as long as some dozens of
them: most sets are used less."""
SETS = 16
"""Sets of adapters whose engines are thought of at a time. Another one begins to count from none."""

MakerOf = Callable[[ModelSpec, Settings, Placement, AdapterSet | None], Maker | None]
Load = Callable[[ModelSpec, EngineLife, AdapterSet | None], LoadedModel]
Start = Callable[[Maker, Sequence[str], Samples], Build]
"""Begins to build the engines of these networks in another process, to be judged on these samples."""


def maker_of(spec: ModelSpec, settings: Settings, place: Placement, adapters: AdapterSet | None = None) -> Maker | None:
    """What makes the engines of a model, with adapters in its weights or without; None where it runs on torch: in half
    precision on the processor, on a GPU without TensorRT, where that is the setting, and where a refiner takes over
    from the denoiser.

    Raises:
        ValueError: as :func:`check_backend`.
    """
    check_backend(settings, place)
    cache = EngineCache(settings.engines_path, settings.engines_bytes)
    if spec.refiner is not None:
        return None
    if settings.backend in ("tensorrt", "tensorrt-rtx"):
        precision = cast(Precision, place.precision)
        lanes = tuple(sorted({1 + (spec.guidance > 1.0), strict_lanes(spec, place)}))
        targets = _architectures(settings.backend, place.device)
        refittable, device = bool(installed_adapters(settings)), str(place.device)
        return PlanMaker(spec.folder, cache, settings.backend, precision, lanes, device, targets, refittable, adapters)
    in_fp32_on_cpu = not place.on_gpu and place.dtype == torch.float32
    if settings.backend == "torch" or not in_fp32_on_cpu:
        return None
    make = OpenVinoMaker if settings.backend == "openvino" else OnnxMaker
    return make(spec.folder, cache, settings.threads, adapters=adapters)


def check_backend(settings: Settings, place: Placement) -> None:
    """Refuse a back end that cannot run here.

    Raises:
        ValueError: it is not installed, or it is TensorRT, and networks do not run on a GPU.
    """
    if settings.backend in ("tensorrt", "tensorrt-rtx") and not place.on_gpu:
        raise ValueError(f"backend is {settings.backend!r}, which needs a GPU, and networks run on {place.device}")
    try:
        if settings.backend == "openvino":
            openvino_version()
        elif settings.backend in ("tensorrt", "tensorrt-rtx"):
            load_tensorrt(settings.backend)
    except ValueError as error:
        raise ValueError(f"backend is {settings.backend!r}: {error}") from error


def engine_life(
    spec: ModelSpec, settings: Settings, place: Placement, make: MakerOf = maker_of, start: Start | None = None,
    adapters: AdapterSet | None = None,
) -> EngineLife:  # fmt: skip
    """The engines that a model is opened with: those of the cache, after those were built that it waits for. A network
    that cannot have one stays on torch.

    Args:
        spec: of the model.
        settings: of the installation.
        place: where networks run.
        make: says what makes the engines of a model.
        start: begins a build; a process beside this one, if not given.
        adapters: in the model's weights. It is not waited for the engines of a set.

    Raises:
        ValueError: a file of the model is missing, or cannot be what its name says; or as :func:`check_backend`.
    """
    maker, start = make(spec, settings, place, adapters), start or start_build
    if maker is None:
        return EngineLife({})
    networks = maker.networks()
    found = {name: _found(path) for name in networks if (path := maker.find(name)) is not None}
    missing = [name for name in networks if name not in found]
    if adapters is None and _waits(spec, settings, place):
        # Scales of 8 bits come from inputs that occurred, for which there is nothing to wait.
        now = [name for name in missing if networks[name].eight is None]
        if not place.on_gpu:
            found |= {name: _built(maker, name) for name in now}
        elif now:
            found |= _waited_for(start(maker, now, {}), now)
        missing = [name for name in missing if name not in now]
    awaited = {
        name: _rows(networks[name]) * calls or 1
        for name, calls in {next(iter(networks)): spec.steps, DECODER: 1}.items()
        if name in missing
    }
    begin = None if settings.engines == "cached" else partial(start, maker)
    return EngineLife(found, missing, begin, awaited, _excused, maker)


class Upgrades:
    """The engines of all models of a worker, and when a model is to be opened anew."""

    def __init__(
        self,
        settings: Settings,
        place: Placement,
        load: Load,
        metrics: WorkerMetrics,
        make: MakerOf = maker_of,
        start: Start | None = None,
    ) -> None:
        """
        Args:
            settings: of the installation.
            place: where networks run.
            load: opens a model with the engines that its life has now, and with adapters in its weights.
            metrics: told of states and fallbacks.
            make, start: as for :func:`engine_life`.

        Raises:
            ValueError: as :func:`check_backend`.
        """
        check_backend(settings, place)
        self._open_life = partial(engine_life, settings=settings, place=place, make=make, start=start)
        self._load, self._metrics = load, metrics
        self._lives: dict[tuple[str, str], tuple[ModelSpec, EngineLife]] = {}
        self._fallen: Counter[str] = Counter()

    def open(self, spec: ModelSpec, adapters: AdapterSet | None = None) -> LoadedModel:
        """A model with its engines as they are now; errors as ``load``."""
        key = spec.name, adapters.identity if adapters else ""
        known, life = self._lives.get(key, (None, None))
        if life is None or known != spec:  # another model may have taken the name
            if life is not None:
                life.stop()
            life = self._open_life(spec, adapters=adapters)
            self._lives[key] = spec, life
            self._forget_sets()
        return self._load(spec, life, adapters)

    def look(self) -> list[str]:
        """Names of the models that rows should begin on anew from now on. Begins the next build; call it about once a
        second, from the thread that runs the networks."""
        lives = {key: life for key, (_, life) in list(self._lives.items())}
        changed = [name for (name, _), life in lives.items() if life.look()]
        if not any(life.builds for life in lives.values()):
            next((life.begin for life in lives.values() if life.waits), lambda: None)()
        self._tell(lives.values())
        return list(dict.fromkeys(changed))

    def close(self) -> None:
        """End the build that is under way."""
        for _, life in self._lives.values():
            life.stop()

    def _forget_sets(self) -> None:
        """Think no more of the sets that were opened first: there is no end of them. Who has one open keeps it."""
        sets = [key for key, (_, life) in self._lives.items() if key[1] and not life.builds]
        for key in sets[: max(0, len(sets) - SETS)]:
            self._lives.pop(key)[1].stop()

    def _tell(self, lives: Collection[EngineLife]) -> None:
        now = Counter(state for life in lives for state in life.states.values())
        for state in get_args(State):
            self._metrics.engines.labels(state).set(now[state])
        for reason in ("rejected", "dropped"):
            self._metrics.engine_fallbacks.labels(reason).inc(max(0, now[reason] - self._fallen[reason]))
            self._fallen[reason] = now[reason]


def _rows(network: Network) -> int:
    """Of which inputs are to be seen before an engine of this network is built; 0: one call will do."""
    return max(EIGHT_ROWS if network.eight is not None else 0, SET_ROWS if network.adapters else 0)


def start_build(maker: Maker, names: Sequence[str], samples: Samples) -> Build:
    """Begin to build in a process of its own, with bounded memory and time."""
    weights = sum(file.stat().st_size for file in maker.folder.glob("*/*.safetensors"))
    base = BASE_BYTES if maker.device == "cpu" else CUDA_BASE_BYTES
    logger.info("engines are being built", extra={"model": maker.folder.name, "networks": list(names)})
    arguments = (maker, tuple(names), samples, ANSWER_LIMIT_S)
    return Background(build_and_judge, arguments, base + TIMES_WEIGHTS * weights, BUILD_LIMIT_S)


def _waits(spec: ModelSpec, settings: Settings, place: Placement) -> bool:
    """Whether a model is not opened before its engines are there. To export a model of clips takes a minute, in which
    torch makes dozens of clips, and on a GPU torch is fast and a build slow."""
    shipped = spec.folder.parent == ZOO and spec.system.task != "image-to-video" and not place.on_gpu
    return settings.engines == "wait" or (settings.engines == "auto" and shipped)


def _found(path: Path) -> Built:
    """An engine of the cache, unless there is something against it."""
    refusal = refusal_of(path.parent)
    return Built(path) if refusal is None else Built.refused(refusal)


def _built(maker: Maker, name: str) -> Built:
    try:
        return _found(maker.build(name, ()))
    except RuntimeError as error:
        return Built(None, str(error))


def _waited_for(build: Build, names: Sequence[str]) -> Mapping[str, Built]:
    """What comes of a build. TensorRT gets a process of its own even then: what it does to itself, it does not do to
    the worker."""
    while (done := build.poll()) is None:
        time.sleep(LOOK_EVERY_S)
    return done.value or {name: Built(None, done.fault) for name in names}


def _architectures(flavour: Flavour, device: torch.device) -> tuple[str, ...]:
    """What a plan is built for: by its name, since a cache may go to another machine."""
    if flavour == "tensorrt":
        return ()
    major, minor = torch.cuda.get_device_capability(device)
    name = f"sm{major}{minor}"
    known = load_tensorrt(flavour).ComputeCapability.__members__
    return (name if name.upper() in known else "current",)


def _excused(error: Exception) -> bool:
    """Errors that say nothing against an engine: of the call, and a memory that was too small for its batch."""
    return blames_the_call(error) or out_of_memory(error)
