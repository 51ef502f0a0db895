"""Networks that are in memory when they are used, and need not be before."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from models.conditioners.condition import Condition
from models.families.row import Denoiser
from service.worker.memory import Home
from service.worker.parking import host_bytes, to_device, to_host
from service.worker.placement import finish_copies
from service.worker.room import free_what_can_be_freed, out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_GUESS_BYTES_PER_S = 5e8
"""Of a load, before the network was ever loaded."""
FIRST_GUESS_HOST_BYTES_PER_S = 1e10
"""Of the return from the machine's memory to a GPU."""
FAILED_FOR_S = 10.0
"""How long a failed load stands: whoever wants the network meanwhile is told so, and afterwards it is tried again."""


class LoadFailed(Exception):
    """A network could not be brought into memory; the cause is chained."""


@dataclass
class _Place(Generic[T]):
    """One network's place in memory, which all models share that have it."""

    network: T | None = None
    parked: T | None = None
    """The network on its way to the machine's memory, or there."""
    loads: int = 0
    since: float | None = None
    used_at: float = 0.0
    load_s: float = 0.0
    return_s: float = 0.0
    switch_s: float = 0.0
    error: Exception | None = None
    failed_at: float = 0.0
    origin: torch.device | None = None
    """Where a parked network comes from."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class LazyNetwork(Generic[T]):
    """A network by its identity. It may be dropped and loaded again; who holds this never notices."""

    def __init__(
        self,
        identity: str,
        size_bytes: int,
        load: Callable[[], T],
        loaded: T | None = None,
        modules: Callable[[T], Iterable[nn.Module]] | None = None,
    ) -> None:
        """
        Args:
            identity: of the weights and the adapters in them, and of what runs them: :func:`numerics.network_id`.
            size_bytes: of the weights in memory.
            load: reads them.
            loaded: the network, where it is there already.
            modules: what its weights are in; None for an engine, which cannot be parked.
        """
        self.identity, self.size_bytes, self._load, self._modules = identity, size_bytes, load, modules
        guess_s, return_s = size_bytes / FIRST_GUESS_BYTES_PER_S, size_bytes / FIRST_GUESS_HOST_BYTES_PER_S
        self._place: _Place[T] = _Place(loaded, load_s=guess_s, return_s=return_s)
        if loaded is not None:
            self._place.since = time.time()

    def share(self, other: LazyNetwork[T]) -> None:
        """Become the same network as ``other``, which has the same identity."""
        self._place = other._place

    def derived(self, identity: str, change: Callable[[T], None]) -> LazyNetwork[T]:
        """Another network of this size: the same weights read once more, and then changed in place.

        Args:
            identity: of the change; its first characters are put behind this network's own.
            change: what is done to the network after each load.
        """

        def load() -> T:
            network = self._load()
            change(network)
            return network

        return LazyNetwork(f"{self.identity}+{identity[:16]}", self.size_bytes, load, modules=self._modules)

    def get(self) -> T:
        """The network, loaded now if it is not there.

        Raises:
            LoadFailed: it cannot be loaded, or could not a moment ago.
        """
        network = self._place.network
        if network is None:
            network = self.load()
        self._place.used_at = time.time()
        return network

    def load(self) -> T:
        """The network, loaded now if it is not there, but not counted as used; errors as :meth:`get`."""
        place = self._place
        with place.lock:
            if place.network is not None:
                return place.network
            if place.error is not None and time.time() - place.failed_at < FAILED_FOR_S:
                raise LoadFailed(str(place.error)) from place.error
            began, from_host = time.perf_counter(), place.parked is not None
            try:
                # A row's step may be what asks for it; weights are to be ordinary tensors even so.
                with torch.inference_mode(False):
                    returned = self._returned()
                    network = self._read() if returned is None else returned
                    finish_copies()
            except Exception as error:
                place.error, place.failed_at = error, time.time()
                raise LoadFailed(str(error)) from error
            place.switch_s = time.perf_counter() - began
            if from_host:
                place.return_s = place.switch_s
            else:
                place.load_s = place.switch_s
            place.network, place.since, place.error = network, time.time(), None
            place.loads += 1
            return network

    @property
    def version(self) -> str:
        """A name of the network as it lies in memory now: after another load its weights are elsewhere."""
        return f"{self.identity}/{self._place.loads}"

    def came_with(self, switch_s: float) -> None:
        """Its load was part of a larger one, of ``switch_s`` seconds, that has just ended."""
        self._place.switch_s = switch_s
        if self._place.since is not None:
            self._place.since = time.time()

    def drop(self) -> None:
        """Forget the network. Its memory is free when nobody is in the middle of using it."""
        with self._place.lock:
            self._place.network = self._place.parked = self._place.since = None

    def leave(self) -> None:
        """Be gone for whoever looks from now on, and wait for :meth:`park`; an engine is dropped."""
        place = self._place
        if self._modules is None:
            self.drop()
            return
        with place.lock:
            if place.network is not None:
                place.parked, place.network, place.since = place.network, None, None

    def park(self) -> None:
        """Bring a network that has left to the machine's memory, from where :meth:`load` has it back soon. Nothing
        happens to one that was loaded again meanwhile."""
        place = self._place
        with place.lock:
            if place.parked is not None and self._modules is not None:
                place.origin = to_host(self._modules(place.parked))

    @property
    def parked_bytes(self) -> int:
        """What it takes, or would take, of the machine's memory; 0 for one that has not left."""
        place = self._place
        with place.lock:
            return 0 if place.parked is None or self._modules is None else host_bytes(self._modules(place.parked))

    @property
    def home(self) -> Home:
        """Where it is. A network whose load has just failed counts as there: whoever wants it is to run and be told."""
        place = self._place
        if place.network is None and place.error is not None and time.time() - place.failed_at < FAILED_FOR_S:
            return Home(0, place.load_s, place.failed_at, place.failed_at + FAILED_FOR_S)
        load_s = place.load_s if place.parked is None else place.return_s
        return Home(self.size_bytes, load_s, place.since, place.used_at, place.switch_s)

    def _returned(self) -> T | None:
        """The network that was parked, on its device again; None if none was."""
        place = self._place
        network, place.parked = place.parked, None
        if network is not None and self._modules is not None and place.origin is not None:
            to_device(self._modules(network), place.origin)
            place.origin = None
        return network

    def _read(self) -> T:
        """The network from disk. What other networks left in the allocator's cache may be the memory that it needs."""
        try:
            return self._load()
        except Exception as error:
            if not out_of_memory(error):
                raise
        free_what_can_be_freed()
        return self._load()


class LazyDenoisers(Mapping[str, Denoiser]):
    """A denoiser and its variants, which share their weights."""

    def __init__(self, network: LazyNetwork[Mapping[str, Denoiser]]) -> None:
        self._network = network

    def __getitem__(self, name: str) -> Denoiser:
        return self._network.get()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._network.get())

    def __len__(self) -> int:
        return len(self._network.get())


class LazyConditioner:
    """A model's conditioner, called like itself."""

    def __init__(self, network: LazyNetwork[Any]) -> None:
        self._network = network

    def encode(self, *arguments: Any, **options: Any) -> Condition:
        """One condition."""
        condition: Condition = self._network.get().encode(*arguments, **options)
        return condition

    def encode_pair(self, *arguments: Any, **options: Any) -> tuple[Condition, Condition]:
        """Positive and negative condition."""
        pair: tuple[Condition, Condition] = self._network.get().encode_pair(*arguments, **options)
        return pair


def loaded_together(networks: Sequence[LazyNetwork[Any]]) -> float:
    """Load these; returns the seconds it took. One that cannot be loaded is logged and leaves the others alone."""
    began = time.perf_counter()
    for network in networks:
        try:
            network.load()
        except LoadFailed:
            logger.exception("a network could not be loaded", extra={"network": network.identity})
    seconds = time.perf_counter() - began
    for network in networks:
        network.came_with(seconds)
    return seconds
