"""Which models are open, and which of their networks are in memory."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from models.families.image_to_video import ImageToVideoModel
from models.families.text_to_image import TextToImageModel
from models.spec.model import ModelSpec
from service.worker.batch import Stage
from service.worker.lazy import LazyNetwork, loaded_together
from service.worker.memory import Memory
from service.worker.numerics import Numerics

logger = logging.getLogger(__name__)

Role = Literal["conditioner", "encoder", "denoiser", "decoder", "fast decoder"]
CORE: tuple[Role, ...] = ("conditioner", "denoiser", "decoder")
"""What every row of a model runs on."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is open, and the two ways its rows may run. Its networks come and go."""

    model: TextToImageModel | ImageToVideoModel
    strict: Numerics
    """A row's bytes are its own, whatever it is batched with."""
    fast: Numerics
    networks: Mapping[Role, LazyNetwork[Any]] = field(default_factory=dict)
    """What ``model`` runs on; one network may have two roles."""

    def numerics(self, deterministic: bool) -> Numerics:
        """How a new row runs."""
        return self.strict if deterministic else self.fast

    def requirements(
        self, stage: Stage, from_picture: bool = False, fast_decoder: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Identities of the networks that a row needs in a stage, and of those it needs in later ones.

        Args:
            stage: the stage that comes next.
            from_picture: whether the row begins from a picture.
            fast_decoder: whether it is decoded by the small decoder, where the model has one.
        """
        decoder: Role = "fast decoder" if fast_decoder and "fast decoder" in self.networks else "decoder"
        first: tuple[Role, ...] = ("conditioner", "encoder") if from_picture else ("conditioner",)
        stages: list[tuple[Role, ...]] = [first, ("denoiser",), (decoder,)]
        number = (Stage.ENCODE, Stage.DENOISE, Stage.DECODE).index(stage)
        later = tuple(role for roles in stages[number + 1 :] for role in roles)
        return self._identities(stages[number]), self._identities(later)

    def _identities(self, roles: Sequence[Role]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.networks[role].identity for role in roles if role in self.networks))


class Residency:
    """Opens models and loads networks on a thread of its own. Models that share a network have it once.

    A network is its identity. What fits into memory is loaded with the model at once; what would displace something
    waits for its turn among the items of :func:`service.worker.batch.next_batch`.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        load: Callable[[ModelSpec], LoadedModel],
        limit_bytes: int | None = None,
        on_load: Callable[[float, int], None] | None = None,
    ) -> None:
        """
        Args:
            specs: the installed models by name.
            load: opens one.
            limit_bytes: memory for networks; None: no limit.
            on_load: told the seconds of every load, and how many networks left for it.
        """
        self._specs, self._load, self._limit_bytes, self._on_load = specs, load, limit_bytes, on_load
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._models: dict[str, Future[LoadedModel]] = {}
        self._networks: dict[str, LazyNetwork[Any]] = {}
        self._loading: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the models that can run now."""
        memory, done = self.memory, [(name, future) for name, future in self._models.items() if future.done()]
        return tuple(name for name, future in done if not future.exception() and memory.holds(_core(future.result())))

    @property
    def memory(self) -> Memory:
        """What is in memory now."""
        with self._lock:
            return self._memory()

    def request(self, name: str) -> Future[LoadedModel]:
        """The model, or the promise of it. A failed load is tried again by the next request.

        Raises:
            KeyError: no such model is installed.
        """
        future = self._models.get(name)
        if future is None or (future.done() and future.exception() is not None):
            future = self._loader.submit(self._open, self._specs[name])
            self._models[name] = future
        return future

    def start(self, load: Sequence[str], evict: Sequence[str]) -> None:
        """Begin a load that :func:`service.worker.batch.next_batch` chose. It is done when :attr:`memory` says so; one
        that fails is told to whoever runs on it. While another is under way nothing happens: the choice is stale."""
        with self._lock:
            if self._loading:
                return
            for identity in evict:
                self._networks[identity].drop()
            self._loading = frozenset(load)
        self._loader.submit(self._bring, frozenset(load), len(evict))

    def close(self) -> None:
        """Stop loading."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _open(self, spec: ModelSpec) -> LoadedModel:
        loaded = self._load(spec)
        with self._lock:
            self._adopt(loaded)
            self._check(loaded)
            memory, core = self._memory(), _core(loaded)
            missing = memory.missing(core)
            fits = memory.displaced(core, ()) == ()
            if fits:
                self._loading |= missing
        if fits and missing:
            self._bring(missing, 0)
            for identity in missing:
                self._networks[identity].load()  # it is there, or raises what went wrong
        return loaded

    def _adopt(self, loaded: LoadedModel) -> None:
        """Take in a model's networks. Those that others have are shared, and those without room leave again: an engine
        is in memory as soon as it is made."""
        for network in loaded.networks.values():
            known = self._networks.setdefault(network.identity, network)
            if known is network:
                continue
            network.share(known)
        for network in {id(n): n for n in loaded.networks.values()}.values():
            memory = self._memory()
            here = [identity for identity, home in memory.networks.items() if home.since is not None]
            if self._networks[network.identity] is network and not memory.fit({*here, *memory.loading}):
                network.drop()

    def _check(self, loaded: LoadedModel) -> None:
        """Refuse a model one of whose stages can never run.

        Raises:
            ValueError: its networks take more than the limit.
        """
        memory = self._memory()
        for stage in (Stage.ENCODE, Stage.DENOISE, Stage.DECODE):
            needs, _ = loaded.requirements(stage)
            if not memory.fit(needs):
                raise ValueError(
                    f"memory_bytes is {self._limit_bytes}, and model {loaded.model.spec.name!r} needs "
                    f"{memory.bytes(needs)} to {stage}"
                )

    def _bring(self, identities: frozenset[str], evicted: int) -> None:
        if evicted:
            gc.collect()  # what was dropped may hang in cycles
        try:
            seconds = loaded_together([self._networks[identity] for identity in sorted(identities)])
            logger.info("networks loaded", extra={"networks": sorted(identities), "seconds": round(seconds, 2)})
            if self._on_load is not None:
                self._on_load(seconds, evicted)
        finally:
            with self._lock:
                self._loading -= identities

    def _memory(self) -> Memory:
        homes = {identity: network.home for identity, network in self._networks.items()}
        return Memory(homes, self._limit_bytes, self._loading)


def _core(loaded: LoadedModel) -> frozenset[str]:
    return frozenset(loaded.networks[role].identity for role in CORE if role in loaded.networks)
