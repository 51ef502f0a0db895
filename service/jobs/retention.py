"""What is deleted and when: ended jobs after a time or when there is too much, then artifacts that no job refers to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from service.jobs.artifacts import Artifact, ArtifactStore
from service.jobs.store import JobStore

_JOBS_AT_ONCE = 20  # a store is held up by one such part
_NAMES_AT_ONCE = 1000


@dataclass(frozen=True)
class Retention:
    """How long things are kept.

    Args:
        max_age_s: ended jobs and their artifacts go after this time; None: never.
        max_bytes: while the artifacts take more, the jobs that ended first go; None: no limit.
        grace_s: nothing younger is ever deleted. It must exceed the time from putting an artifact to recording it in
            the store, and the difference between the clocks of the store and of the place where the artifacts lie.

    Raises:
        ValueError: a number is negative.
    """

    max_age_s: float | None = 7 * 86400.0
    max_bytes: int | None = None
    grace_s: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("max_age_s", "max_bytes", "grace_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")


@dataclass(frozen=True)
class Deleted:
    """What one round deleted, and what is left."""

    jobs: int
    artifacts: int
    bytes: int
    bytes_left: int


def collect(
    store: JobStore, artifacts: ArtifactStore, retention: Retention, clock: Callable[[], float] = time.time
) -> Deleted:
    """Delete what has had its time. Several processes may do so at once; it takes one listing of the artifacts.

    An artifact may go when no job refers to it and it was put ``grace_s`` ago or longer: what a worker has just put is
    referred to in a moment, and putting bytes that are there makes them young again.
    """
    return _Round(store, artifacts, retention, clock()).run()


class _Round:
    """One pass: by age, then what nobody refers to, then by size."""

    def __init__(self, store: JobStore, artifacts: ArtifactStore, retention: Retention, now: float) -> None:
        self._store, self._artifacts, self._retention = store, artifacts, retention
        self._now, self._young = now, now - retention.grace_s
        self._sizes: dict[str, int] = {}  # of what is left
        self._jobs = self._files = self._bytes = 0

    def run(self) -> Deleted:
        old = [artifact.name for artifact in self._listed() if artifact.stored_at < self._young]
        if self._retention.max_age_s is not None:
            while self._prune(min(self._now - self._retention.max_age_s, self._young)) is not None:
                pass
        for names in _parts(old, _NAMES_AT_ONCE):
            used = self._store.referenced(names)
            self._remove([name for name in names if name not in used])
        self._artifacts.tidy(self._young)
        left = sum(self._sizes.values())  # of the listing: what was put since does not count
        while self._retention.max_bytes is not None and left > self._retention.max_bytes:
            free = self._prune(self._young)
            if free is None:
                break
            left -= self._remove(free)
        return Deleted(self._jobs, self._files, self._bytes, left)

    def _listed(self) -> Iterator[Artifact]:
        for artifact in self._artifacts.list():
            self._sizes[artifact.name] = artifact.size
            yield artifact

    def _prune(self, ended_before: float) -> Sequence[str] | None:
        """Artifacts that some old jobs left behind, None when there are no such jobs."""
        pruned = self._store.prune(ended_before, _JOBS_AT_ONCE)
        self._jobs += pruned.jobs
        return pruned.artifacts if pruned.jobs else None

    def _remove(self, names: Sequence[str]) -> int:
        """Bytes that were freed."""
        removed = [name for name in names if self._artifacts.remove(name, self._young)]
        freed = sum(self._sizes.pop(name, 0) for name in removed)
        self._files += len(removed)
        self._bytes += freed
        return freed


def _parts(names: Sequence[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while part := list(islice(rest, size)):
        yield part
