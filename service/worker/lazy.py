"""Networks that are in memory when they are used, and need not be before."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from models.conditioners.condition import Condition
from models.families.row import Denoiser
from service.worker.memory import Home

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_GUESS_BYTES_PER_S = 5e8
"""Of a load, before the network was ever loaded."""
FAILED_FOR_S = 10.0
"""How long a failed load stands: whoever wants the network meanwhile is told so, and afterwards it is tried again."""


class LoadFailed(Exception):
    """A network could not be brought into memory; the cause is chained."""


@dataclass
class _Place(Generic[T]):
    """One network's place in memory, which all models share that have it."""

    network: T | None = None
    since: float | None = None
    used_at: float = 0.0
    load_s: float = 0.0
    switch_s: float = 0.0
    error: Exception | None = None
    failed_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class LazyNetwork(Generic[T]):
    """A network by its identity. It may be dropped and loaded again; who holds this never notices."""

    def __init__(self, identity: str, size_bytes: int, load: Callable[[], T], loaded: T | None = None) -> None:
        """
        Args:
            identity: of the weights and the adapters in them, and of what runs them: :func:`numerics.network_id`.
            size_bytes: of the weights in memory.
            load: reads them.
            loaded: the network, where it is there already.
        """
        self.identity, self.size_bytes, self._load = identity, size_bytes, load
        self._place: _Place[T] = _Place(loaded, load_s=size_bytes / FIRST_GUESS_BYTES_PER_S)
        if loaded is not None:
            self._place.since = time.time()

    def share(self, other: LazyNetwork[T]) -> None:
        """Become the same network as ``other``, which has the same identity."""
        self._place = other._place

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
            began = time.perf_counter()
            try:
                # A row's step may be what asks for it; weights are to be ordinary tensors even so.
                with torch.inference_mode(False):
                    network = self._load()
            except Exception as error:
                place.error, place.failed_at = error, time.time()
                raise LoadFailed(str(error)) from error
            place.load_s = place.switch_s = time.perf_counter() - began
            place.network, place.since, place.error = network, time.time(), None
            return network

    def came_with(self, switch_s: float) -> None:
        """Its load was part of a larger one, of ``switch_s`` seconds, that has just ended."""
        self._place.switch_s = switch_s
        if self._place.since is not None:
            self._place.since = time.time()

    def drop(self) -> None:
        """Forget the network. Its memory is free when nobody is in the middle of using it."""
        with self._place.lock:
            self._place.network = self._place.since = None

    @property
    def home(self) -> Home:
        """Where it is. A network whose load has just failed counts as there: whoever wants it is to run and be told."""
        place = self._place
        if place.network is None and place.error is not None and time.time() - place.failed_at < FAILED_FOR_S:
            return Home(0, place.load_s, place.failed_at, place.failed_at + FAILED_FOR_S)
        return Home(self.size_bytes, place.load_s, place.since, place.used_at, place.switch_s)


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


def fp32_bytes(files: Iterable[Path]) -> int:
    """Bytes that the tensors of these safetensors files take in fp32.

    Raises:
        ValueError: one is no such file.
    """
    return sum(4 * math.prod(entry["shape"]) for path in files for entry in _header(path))


def _header(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} is not a safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    return [entry for name, entry in header.items() if name != "__metadata__"]
