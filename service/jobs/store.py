"""The verbs of a job store. It holds durable facts only; progress travels on the bus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.jobs.job import Job, JobError, JobState, Lease, Result, TextToImage

MAX_ATTEMPTS = 3
"""A job that was claimed this often and never ended has taken its workers with it: it fails as ``worker_lost``."""


@dataclass(frozen=True)
class QueueStats:
    """Numbers for the gauges."""

    queued: int
    running: int
    oldest_queued_at: float | None  # Unix seconds


class JobStore(Protocol):
    """Every method is safe to call from any thread and is durable when it returns.

    A job ends exactly once: the first of complete, fail, cancel and the last reap wins, later calls change nothing.
    """

    def submit(self, request: TextToImage, idempotency_key: str | None = None) -> Job:
        """Accept a job. The same key with the same request returns the first job.

        Raises:
            IdempotencyConflict: the key was used with another request.
            QueueFull: as many jobs are queued as the store may hold.
        """

    def claim(self, worker: str, limit: int, lease_s: float) -> list[Lease]:
        """Take up to ``limit`` queued jobs, oldest first, under fresh unguessable lease ids."""

    def renew(self, lease_ids: Sequence[str], lease_s: float) -> set[str]:
        """Extend leases; returns those still held. One that is missing was cancelled, reaped or never existed."""

    def complete(self, lease_id: str, results: Sequence[Result]) -> bool:
        """Record the outcome; False when the lease is no longer held (nothing is written then)."""

    def fail(self, lease_id: str, error: JobError) -> bool:
        """Record a failure; False as for :meth:`complete`."""

    def cancel(self, job_id: str) -> Job | None:
        """End a queued or running job as cancelled; a finished one stays as it is. None for an unknown id."""

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""

    def list(self, limit: int, after: str | None = None, state: JobState | None = None) -> list[Job]:
        """Newest first, starting after the job ``after``."""

    def reap(self, worker: str | None = None) -> int:
        """Return jobs of expired leases to the queue (of ``worker``: all its leases, for it is known to be dead), or
        fail them after :data:`MAX_ATTEMPTS`; returns how many jobs were touched."""

    def release(self, worker: str) -> int:
        """Return all jobs of a worker that stops in order to the queue; unlike with :meth:`reap`, the claim does not
        count as an attempt. Returns how many there were."""

    def stats(self) -> QueueStats:
        """Depth of the queue and age of its oldest job."""

    def close(self) -> None:
        """Release files and connections."""
