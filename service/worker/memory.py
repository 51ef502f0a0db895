"""What is in a device's memory, and what would have to leave for something else. Pure data: no torch, no clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

TENURE = 5.0
"""A network that has work keeps its place for so many times the seconds of the load that brought it. At the worst a
sixth of the time then goes into loads."""


@dataclass(frozen=True)
class Home:
    """Where one network is, and what it costs to have it in memory."""

    bytes: int
    load_s: float
    """Seconds of a load: measured, or predicted from its size."""
    since: float | None = None
    """When it came into memory, Unix seconds; None: it is on disk."""
    used_at: float = 0.0
    """When a batch last ran on it."""
    switch_s: float = 0.0
    """Seconds of the whole load that brought it, with the networks that came together with it."""

    @property
    def used(self) -> bool:
        """Whether anything ran on it since it came."""
        return self.since is not None and self.used_at > self.since

    def settled(self, now: float) -> bool:
        """Whether it had its time, so that it may have to leave although it has work."""
        return self.since is not None and now >= self.since + TENURE * self.switch_s


@dataclass(frozen=True)
class Memory:
    """The networks of all open models by identity: the hash of the weights and of the adapters that are in them."""

    networks: Mapping[str, Home] = field(default_factory=dict)
    limit_bytes: int | None = None
    """None: everything has room."""
    loading: frozenset[str] = frozenset()
    """On their way into memory, where their room is taken already."""

    def holds(self, names: Collection[str]) -> bool:
        """Whether all of these can run now."""
        return all(self.networks[name].since is not None for name in names)

    def missing(self, names: Collection[str]) -> frozenset[str]:
        """Those of them that would have to be loaded."""
        return frozenset(name for name in names if self.networks[name].since is None)

    def bytes(self, names: Collection[str]) -> int:
        """What they take together."""
        return sum(self.networks[name].bytes for name in names)

    def load_s(self, names: Collection[str]) -> float:
        """Predicted seconds until those of them that are missing are there."""
        return sum(self.networks[name].load_s for name in self.missing(names))

    def fit(self, names: Collection[str]) -> bool:
        """Whether they can be in memory at the same time."""
        return self.limit_bytes is None or self.bytes(names) <= self.limit_bytes

    def displaced(self, coming: Collection[str], busy: Collection[str]) -> tuple[str, ...] | None:
        """The networks that have to leave for ``coming``; None when even that would not make room.

        Args:
            coming: what is to be in memory afterwards.
            busy: networks that have work. They leave after those that have none; within both, the one that was not used
                for longest leaves first.
        """
        if self.limit_bytes is None:
            return ()
        here = [name for name, home in self.networks.items() if home.since is not None]
        taken = self.bytes({*here, *self.loading})
        short = taken + self.bytes(self.missing(coming) - self.loading) - self.limit_bytes
        leaving: list[str] = []
        for name in sorted(here, key=lambda name: (name in busy, self.networks[name].used_at, name)):
            if short <= self.bytes(leaving):
                break
            if name not in coming:
                leaving.append(name)
        for name in tuple(leaving):  # a large one behind small ones may do without them
            if short <= self.bytes(leaving) - self.networks[name].bytes:
                leaving.remove(name)
        return tuple(leaving) if short <= self.bytes(leaving) else None
