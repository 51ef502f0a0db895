"""Which models are open, and which of their networks are in memory."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from engines.life import EngineFailed
from models.spec.model import ModelSpec
from service.jobs.job import Adapter
from service.worker.batch import Stage
from service.worker.lazy import LazyNetwork, LoadFailed, loaded_together
from service.worker.loaded import LoadedModel
from service.worker.memory import Memory
from service.worker.parking import Parking

logger = logging.getLogger(__name__)

IDLE_SETS = 4
"""Models with adapters that stay open although nobody makes use of them."""
Version = tuple[object, ...]
"""Of the files of some adapters; and which opening of a model it is."""


class Adapted(Protocol):
    """What opens models with adapters: :class:`service.worker.adapted.AdaptedModels`."""

    def version(self, adapters: Sequence[Adapter]) -> Version:
        """Another one whenever one of their files is."""

    def open(self, spec: ModelSpec, adapters: Sequence[Adapter]) -> LoadedModel:
        """The model with these in its weights."""


@dataclass(frozen=True)
class _Key:
    """What is open: a model, or one with adapters in its weights."""

    name: str
    adapters: tuple[Adapter, ...] = ()
    version: Version = ()


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
        adapted: Adapted | None = None,
        parking: Parking | None = None,
        set_up_loader: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            specs: the installed models by name.
            load: opens one.
            limit_bytes: memory for networks; None: no limit.
            on_load: told the seconds of every load, and how many networks left for it.
            adapted: opens models with adapters; None: there are none.
            parking: where networks go that leave; None: nowhere, they are read again.
            set_up_loader: called once on the thread that loads.
        """
        self._specs, self._load, self._limit_bytes, self._on_load = specs, load, limit_bytes, on_load
        self._adapted, self._parking = adapted, parking or Parking(0)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=set_up_loader)
        self._models: dict[_Key, Future[LoadedModel]] = {}
        self._users: dict[str, set[_Key]] = {}
        self._openings: dict[str, int] = {}
        self._left: dict[_Key, list[weakref.ref[LoadedModel]]] = {}
        self._networks: dict[str, LazyNetwork[Any]] = {}
        self._loading: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the models that can run now, without adapters."""
        memory = self.memory
        done = [(key.name, future) for key, future in self._models.items() if future.done() and not key.adapters]
        return tuple(name for name, future in done if not future.exception() and memory.holds(future.result().core))

    @property
    def opened(self) -> frozenset[str]:
        """Names of the models that were asked for, with adapters or without."""
        return frozenset(key.name for key in self._models)

    @property
    def memory(self) -> Memory:
        """What is in memory now."""
        with self._lock:
            return self._memory()

    def request(self, name: str, adapters: Sequence[Adapter] = ()) -> Future[LoadedModel]:
        """The model, or the promise of it. A failed load is tried again by the next request.

        Args:
            name: of the model.
            adapters: to have in its weights, in any order.

        Raises:
            KeyError: no such model is installed.
        """
        fused = tuple(sorted(adapters, key=lambda adapter: adapter.name))
        files = self._adapted.version(fused) if self._adapted and fused else ()
        key = _Key(name, fused, (*self._opening(name), *files))
        future = self._models.pop(key, None)
        if future is None or (future.done() and future.exception() is not None):
            future = self._loader.submit(self._open, key, self._specs[name])
        self._models[key] = future  # behind all that were asked for before
        return future

    def close_idle(self, used: Iterable[tuple[str, Sequence[Adapter]]]) -> None:
        """Close models with adapters, all but the last few, of which nobody makes use: there is no end of sets.

        Args:
            used: name and adapters of all that is in flight or wants to be.
        """
        adapted = [key for key in self._models if key.adapters]
        if len(adapted) <= IDLE_SETS:
            return
        in_use = {(name, frozenset(adapters)) for name, adapters in used}
        idle = [key for key in adapted if (key.name, frozenset(key.adapters)) not in in_use]
        with self._lock:
            for key in idle[: len(adapted) - IDLE_SETS]:
                if self._models[key].done() and not self._loading & self._only_of(key):
                    del self._models[key]
                    self._forget(key)

    def reopen(self, names: Sequence[str] = ()) -> None:
        """Open models anew for rows that begin from now on: other networks run them. Those that they had leave the
        memory behind the last row that runs on them: call it now and then, without names too. A set of adapters is
        opened anew by the next row that has it."""
        self._openings |= {name: self._openings.get(name, 0) + 1 for name in names}
        plain = {key.name for key in self._models if not key.adapters}
        with self._lock:
            for key in [key for key in self._models if key.version[:1] != self._opening(key.name)]:
                if self._models[key].done():
                    future = self._models.pop(key)
                    if future.exception() is None:
                        self._left[key] = [weakref.ref(way) for way in future.result().ways]
            for key in [key for key, ways in self._left.items() if not any(way() for way in ways)]:
                if not self._loading & self._only_of(key):
                    del self._left[key]
                    self._forget(key)
        for name in (name for name in names if name in plain and name in self._specs):
            self.request(name)

    def start(self, load: Sequence[str], evict: Sequence[str]) -> None:
        """Begin a load that :func:`service.worker.batch.next_batch` chose. It is done when :attr:`memory` says so; one
        that fails is told to whoever runs on it. While another is under way nothing happens: the choice is stale."""
        with self._lock:
            if self._loading:
                return
            leaving = [self._networks[identity] for identity in evict]
            for network in leaving:
                network.leave()
            self._loading = frozenset(load)
        self._loader.submit(self._bring, frozenset(load), leaving)

    def close(self) -> None:
        """Stop loading."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _open(self, key: _Key, spec: ModelSpec) -> LoadedModel:
        """The model; once more without an engine that cannot be loaded, of which each model has a few."""
        while True:
            loaded = self._adapted.open(spec, key.adapters) if self._adapted and key.adapters else self._load(spec)
            try:
                return self._taken_in(key, loaded)
            except LoadFailed as error:
                if not isinstance(error.__cause__, EngineFailed):
                    raise
                logger.warning("an engine cannot be loaded", extra={"model": spec.name, "error": str(error)})
            with self._lock:
                self._forget(key)

    def _taken_in(self, key: _Key, loaded: LoadedModel) -> LoadedModel:
        with self._lock:
            self._adopt(key, loaded)
            try:
                self._check(loaded)
            except ValueError:
                self._forget(key)
                raise
            memory, core = self._memory(), loaded.core
            missing = memory.missing(core)
            fits = memory.displaced(core, ()) == ()
            if fits:
                self._loading |= missing
        if fits and missing:
            self._bring(missing, [])
            for identity in missing:
                self._networks[identity].load()  # it is there, or raises what went wrong
        return loaded

    def _adopt(self, key: _Key, loaded: LoadedModel) -> None:
        """Take in a model's networks. Those that others have are shared, and those without room leave again: an engine
        is in memory as soon as it is made."""
        for network in loaded.all_networks:
            self._users.setdefault(network.identity, set()).add(key)
            known = self._networks.setdefault(network.identity, network)
            if known is network:
                continue
            network.share(known)
        for network in loaded.all_networks:
            memory = self._memory()
            here = [identity for identity, home in memory.networks.items() if home.since is not None]
            if self._networks[network.identity] is network and not memory.fit({*here, *memory.loading}):
                network.drop()

    def _forget(self, key: _Key) -> None:
        """Let go of a model, and of the networks that no other has."""
        for identity in self._only_of(key):
            self._networks.pop(identity).drop()
        for users in self._users.values():
            users.discard(key)
        self._users = {identity: users for identity, users in self._users.items() if users}

    def _opening(self, name: str) -> Version:
        """Which opening of a model is the one for rows that begin now."""
        return (self._openings.get(name, 0),)

    def _only_of(self, key: _Key) -> set[str]:
        return {identity for identity, users in self._users.items() if users == {key}}

    def _check(self, loaded: LoadedModel) -> None:
        """Refuse a model one of whose stages can never run.

        Raises:
            ValueError: its networks take more than the limit.
        """
        memory = self._memory()
        for stage in (Stage.ENCODE, Stage.DENOISE, Stage.DECODE):
            for needs, _ in (way.requirements(stage) for way in loaded.ways):
                if not memory.fit(needs):
                    raise ValueError(
                        f"memory_bytes is {self._limit_bytes}, and model {loaded.model.spec.name!r} needs "
                        f"{memory.bytes(needs)} to {stage}"
                    )

    def _bring(self, identities: frozenset[str], leaving: Sequence[LazyNetwork[Any]]) -> None:
        try:
            if leaving:
                self._parking.take(leaving)
            seconds = loaded_together([self._networks[identity] for identity in sorted(identities)])
            logger.info("networks loaded", extra={"networks": sorted(identities), "seconds": round(seconds, 2)})
            if self._on_load is not None:
                self._on_load(seconds, len(leaving))
        finally:
            with self._lock:
                self._loading -= identities

    def _memory(self) -> Memory:
        homes = {identity: network.home for identity, network in self._networks.items()}
        return Memory(homes, self._limit_bytes, self._loading)
