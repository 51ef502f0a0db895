"""Who runs a model's networks: torch at once, engines as soon as there are any.

A model is opened with the engines that are there. What is missing is either waited for, or built in the background once
torch has shown what inputs occur; then the model is opened anew, for rows that begin from then on. An engine that fails
in service is left out of the next opening.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from engines.background import Background
from engines.cache import EngineCache
from engines.life import Build, Built, EngineLife, Samples, State, blames_the_call, build_and_judge
from engines.networks import Network, networks_of
from engines.prepare import build_graph, find
from models.spec.model import ModelSpec
from service.metrics import WorkerMetrics
from service.settings import ZOO, Settings
from service.worker.placement import Placement
from service.worker.residency import LoadedModel
from service.worker.room import out_of_memory

logger = logging.getLogger(__name__)

BASE_BYTES, TIMES_WEIGHTS = 2 * 2**30, 6
"""Memory of a build: of the libraries, and of the weights in all the forms that they take on their way."""
BUILD_LIMIT_S = 2 * 3600.0
ANSWER_LIMIT_S = 600.0
"""For an engine to answer one call while it is judged."""


def engine_life(spec: ModelSpec, settings: Settings, place: Placement) -> EngineLife:
    """The engines that a model is opened with: those of the cache, after those were built that it waits for. A network
    that cannot be exported stays on torch. There are none for a model that runs anywhere but on the processor in fp32,
    and none for one whose refiner takes over.

    Raises:
        ValueError: a file of the model is missing, or cannot be what its name says.
    """
    in_fp32_on_cpu = not place.on_gpu and place.dtype == torch.float32
    if settings.backend != "onnxruntime" or not in_fp32_on_cpu or spec.refiner is not None:
        return EngineLife({})
    cache = EngineCache(settings.engines_path, settings.engines_bytes)
    networks = [network for network in networks_of(spec.folder).values() if not network.is_tower]
    if _waits(spec, settings):
        return EngineLife({network.name: _built(network, cache) for network in networks}, excused=_excused)
    found = {name: Built(path) for name, path in find(spec.folder, cache).items()}
    missing = [network.name for network in networks if network.name not in found]
    awaited = [name for name in (networks[0].name, "vae/decoder") if name in missing]
    begin = None if settings.engines == "cached" else partial(_begin, spec.folder, settings)
    return EngineLife(found, missing, begin, awaited, _excused)


class Upgrades:
    """The engines of all models of a worker, and when a model is to be opened anew."""

    def __init__(
        self,
        settings: Settings,
        place: Placement,
        load: Callable[[ModelSpec, EngineLife], LoadedModel],
        metrics: WorkerMetrics,
    ) -> None:
        """
        Args:
            settings: of the installation.
            place: where networks run.
            load: opens a model with the engines that its life has now.
            metrics: told of states and fallbacks.
        """
        self._settings, self._place, self._load, self._metrics = settings, place, load, metrics
        self._lives: dict[str, tuple[ModelSpec, EngineLife]] = {}
        self._fallen: Counter[str] = Counter()

    def open(self, spec: ModelSpec) -> LoadedModel:
        """A model with its engines as they are now; errors as ``load``."""
        known, life = self._lives.get(spec.name, (None, None))
        if life is None or known != spec:  # another model may have taken the name
            if life is not None:
                life.stop()
            life = engine_life(spec, self._settings, self._place)
            self._lives[spec.name] = spec, life
        return self._load(spec, life)

    def look(self) -> list[str]:
        """Names of the models that rows should begin on anew from now on. Begins the next build; call it about once a
        second, from the thread that runs the networks."""
        lives = {name: life for name, (_, life) in list(self._lives.items())}
        changed = [name for name, life in lives.items() if life.look()]
        if not any(life.builds for life in lives.values()):
            next((life.begin for life in lives.values() if life.waits), lambda: None)()
        self._tell(lives.values())
        return changed

    def close(self) -> None:
        """End the build that is under way."""
        for _, life in self._lives.values():
            life.stop()

    def _tell(self, lives: Collection[EngineLife]) -> None:
        now = Counter(state for life in lives for state in life.states.values())
        for state in get_args(State):
            self._metrics.engines.labels(state).set(now[state])
        for reason in ("rejected", "dropped"):
            self._metrics.engine_fallbacks.labels(reason).inc(max(0, now[reason] - self._fallen[reason]))
            self._fallen[reason] = now[reason]


def _waits(spec: ModelSpec, settings: Settings) -> bool:
    """Whether a model is not opened before its engines are there. To export a model of clips takes a minute, in which
    torch makes dozens of clips."""
    shipped = spec.folder.parent == ZOO and spec.system.task != "image-to-video"
    return settings.engines == "wait" or (settings.engines == "auto" and shipped)


def _built(network: Network, cache: EngineCache) -> Built:
    try:
        return Built(build_graph(network, cache))
    except RuntimeError as error:
        return Built(None, str(error))


def _begin(folder: Path, settings: Settings, names: Sequence[str], samples: Samples) -> Build:
    weights = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
    arguments = (folder, tuple(names), settings.engines_path, settings.engines_bytes, samples, ANSWER_LIMIT_S)
    logger.info("engines are being built", extra={"model": folder.name, "networks": list(names)})
    return Background(build_and_judge, arguments, BASE_BYTES + TIMES_WEIGHTS * weights, BUILD_LIMIT_S)


def _excused(error: Exception) -> bool:
    """Errors that say nothing against an engine: of the call, and a memory that was too small for its batch."""
    return blames_the_call(error) or out_of_memory(error)
