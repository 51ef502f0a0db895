"""A worker's leases, claimed and renewed on a thread of their own: a store that hangs must not hold up the device."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from service.jobs.job import Lease
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.worker.outage import Outage

JOB_PICTURES = 10
"""A job has at most so many pictures. A claim asks for as many jobs as surely have room, again and again."""
CLAIM_EVERY_S = 1.0
"""Looks into the store without having been told of a job: the bus is lossy."""
RENEW_EVERY_S = 1.0
"""Also how long a cancellation stays unnoticed when its event was lost."""


class Leases:
    """One worker's. Nothing here waits for the store but :meth:`claimed`, as long as it is told to, and ``close``."""

    def __init__(
        self, worker: str, store: JobStore, lease_s: float, models: Collection[str], metrics: WorkerMetrics
    ) -> None:
        self._worker, self._store, self._lease_s, self._models = worker, store, lease_s, models
        self._outage = Outage(metrics)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leases")
        self._claim: Future[list[Lease]] | None = None
        self._renewal: Future[set[str]] | None = None
        self._claimed_at = self._renewed_at = -1e9
        self._told = True

    def told(self) -> None:
        """There are new jobs."""
        self._told = True

    def claim(self, room: int) -> bool:
        """Begin to take jobs of up to ``room`` pictures, the last one perhaps of more, if it is time to; whether it
        was."""
        due = self._told or time.monotonic() - self._claimed_at > CLAIM_EVERY_S
        if room <= 0 or not due or self._claim is not None or self._outage.left_s:
            return False
        self._told = False
        self._claim = self._thread.submit(self._take, room)
        return True

    def claimed(self, wait_s: float = 0.0) -> list[Lease]:
        """The jobs that were taken since the last call, after waiting for a claim that is under way."""
        if self._claim is None or not wait([self._claim], wait_s).done:
            return []
        claim, self._claim = self._claim, None
        self._claimed_at = time.monotonic()
        return claim.result()

    def renew(self, lease_ids: Sequence[str]) -> set[str]:
        """Extend leases now and then; those that the last renewal found lost. One that is missing was cancelled, taken
        back, or has ended."""
        lost: set[str] = set()
        if self._renewal is not None and self._renewal.done():
            lost, self._renewal = self._renewal.result(), None
        due = time.monotonic() - self._renewed_at >= RENEW_EVERY_S
        if lease_ids and due and self._renewal is None and not self._outage.left_s:
            self._renewal = self._thread.submit(self._extend, list(lease_ids))
        return lost

    def close(self) -> None:
        """Give back what is left; if the store is away, leases run out instead."""
        self._thread.shutdown(wait=True)
        self._outage.attempt("release", lambda: self._store.release(self._worker))

    def _take(self, room: int) -> list[Lease]:
        taken: list[Lease] = []
        while room > 0:
            limit = max(1, room // JOB_PICTURES)
            leases = self._outage.attempt("claim", lambda limit=limit: self._claim_up_to(limit))  # type: ignore[misc]
            if leases is None:
                self._told = True
                break
            taken += leases
            room -= sum(lease.job.request.n for lease in leases)
            if len(leases) < limit:
                break
        return taken

    def _claim_up_to(self, limit: int) -> list[Lease]:
        return self._store.claim(self._worker, limit, self._lease_s, tuple(self._models))

    def _extend(self, lease_ids: list[str]) -> set[str]:
        held = self._outage.attempt("renew", lambda: self._store.renew(lease_ids, self._lease_s))
        if held is None:
            return set()
        self._renewed_at = time.monotonic()
        return set(lease_ids) - held
