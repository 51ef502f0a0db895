"""The verbs of a job store. It holds durable facts only; progress travels on the bus."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.errors import IdempotencyConflict
from service.jobs.job import REQUEST, Job, JobError, JobState, Lease, Priority, Request, Result, Task

MAX_ATTEMPTS = 3
"""A job that was claimed this often and never ended has taken its workers with it: it fails as ``worker_lost``."""

WORKER_LOST = JobError(code="worker_lost", message=f"the job's worker was lost {MAX_ATTEMPTS} times")

HEAD_START_S: Mapping[Priority, float] = {Priority.INTERACTIVE: 0.0, Priority.STANDARD: 30.0, Priority.BATCH: 600.0}
"""The ageing of queued jobs: each is claimed in its turn as if it had been accepted so many seconds later. A batch job
therefore waits behind the interactive jobs of the next ten minutes and behind none after that, so it cannot starve; and
the order of two jobs never changes while they wait, so a queue can be kept sorted."""

POSITION_EXACT = 1000
"""Up to here :meth:`JobStore.position` is exact."""


@dataclass(frozen=True)
class ClassStats:
    """The queue of one priority class."""

    queued: int
    oldest_queued_at: float | None  # Unix seconds


@dataclass(frozen=True)
class QueueStats:
    """Numbers for the gauges and for whoever plans. ``classes``, ``models`` and ``ended`` leave out what is zero."""

    queued: int
    running: int
    oldest_queued_at: float | None  # Unix seconds
    classes: Mapping[Priority, ClassStats] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    """Queued jobs by model."""
    ended: Mapping[JobState, int] = field(default_factory=dict)
    """Jobs that ever ended so, deleted ones included: a counter for all processes together."""


@dataclass(frozen=True)
class Pruned:
    """What :meth:`JobStore.prune` deleted."""

    jobs: int
    artifacts: tuple[str, ...]
    """Names to which no job refers any more."""


class JobStore(Protocol):
    """Every method is safe to call from any thread and is durable when it returns.

    A job ends exactly once: the first of complete, fail, cancel, the last reap and its deadline wins, later calls
    change nothing. To watch a job is to read it with :meth:`get` and then to listen to the bus.

    The methods block: a worker's loop has nothing to do before it knows its jobs, and the API calls those that may wait
    in threads, as it must for a file anyway. Every method raises :class:`service.errors.Unavailable` when the store is
    out of reach or its disk is full.
    """

    def submit(
        self,
        request: Request,
        idempotency_key: str | None = None,
        *,
        priority: Priority = Priority.STANDARD,
        deadline_s: float | None = None,
        wait: bool = True,
    ) -> Job:
        """Accept a job. The same key with the same arguments returns the first job, even when the queue is full.

        Args:
            request: what to make.
            idempotency_key: names this submission for as long as its job is kept.
            priority: its class.
            deadline_s: seconds from now within which a worker must have begun.
            wait: whether this may take longer than the work itself: while others write, and for a disk or a network.

        Raises:
            IdempotencyConflict: the key was used with other arguments.
            QueueFull: as many jobs are queued as the store may hold.
            ValueError: ``deadline_s`` is not a positive number, or the request holds what JSON cannot.
            BlockingIOError: it may not wait and would have to, as a store on a server always would. Nothing happened.
        """

    def claim(self, worker: str, limit: int, lease_s: float, models: Collection[str] | None = None) -> list[Lease]:
        """Take up to ``limit`` queued jobs for ``lease_s`` seconds under fresh unguessable lease ids.

        The order is that of acceptance, with the head starts of :data:`HEAD_START_S`. Only jobs of ``models`` are
        taken (None: of any). Jobs past their deadline end as expired.
        """

    def renew(self, lease_ids: Sequence[str], lease_s: float) -> set[str]:
        """Extend leases; returns those still held. One that is missing was cancelled, reaped or never existed."""

    def checkpoint(self, lease_id: str, artifact: str) -> bool:
        """Record from where another worker can go on; False when the lease is no longer held."""

    def complete(self, lease_id: str, results: Sequence[Result]) -> bool:
        """Record the outcome; False when the lease is no longer held (nothing is written then)."""

    def fail(self, lease_id: str, error: JobError) -> bool:
        """Record a failure; False as for :meth:`complete`."""

    def cancel(self, job_id: str) -> Job | None:
        """End a queued or running job as cancelled; a finished one stays as it is. None for an unknown id."""

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The states of those of these jobs that there are: a cheap look at many."""

    def delete(self, job_id: str) -> Job | None:
        """Forget a job, and with it its idempotency key and its references to artifacts; one that had not ended ends as
        cancelled first. Returns the job as it ended, None for an unknown id."""

    def position(self, job_id: str) -> int | None:
        """How many queued jobs, of any model, have their turn before this one's; None when it is not queued.

        Beyond :data:`POSITION_EXACT` it may be too low, for counting must not get slower with the queue."""

    def list(
        self,
        limit: int,
        after: str | None = None,
        state: JobState | None = None,
        *,
        tasks: Collection[Task] | None = None,
        oldest_first: bool = False,
    ) -> list[Job]:
        """Jobs in that state and of these tasks (None: any), by acceptance and newest first, starting after the job
        ``after``, which may be any job.

        Raises:
            UnknownJob: there is no job ``after``. An empty answer would look like the end of the list.
        """

    def reap(self, worker: str | None = None) -> int:
        """Return jobs of expired leases to the queue (of ``worker``: all its leases, for it is known to be dead), or
        fail them after :data:`MAX_ATTEMPTS`; returns how many these were. Queued jobs past their deadline then end as
        expired, which is not counted."""

    def release(self, worker: str) -> int:
        """Return all jobs of a worker that stops in order to the queue; unlike with :meth:`reap`, the claim does not
        count as an attempt. Returns how many there were."""

    def stats(self) -> QueueStats:
        """Depth of the queue and age of its oldest job, over all, by class and by model."""

    def prune(self, ended_before: float, limit: int) -> Pruned:
        """Delete up to ``limit`` jobs that ended before that time (Unix seconds), the first to end first."""

    def referenced(self, artifacts: Sequence[str]) -> set[str]:
        """Those of these artifacts that are an input, a result or the checkpoint of a job."""

    def close(self) -> None:
        """Release files and connections; closing twice is fine."""


def request_json(request: Request) -> str:
    """The request as it is stored.

    Raises:
        ValueError: it would not come back from there (JSON has no infinity), and would break every claim.
    """
    text = request.model_dump_json()
    REQUEST.validate_json(text)
    return text


def references(job: Job) -> tuple[str, ...]:
    """Artifacts that a job which has ended refers to, as often as it does."""
    return (*job.request.inputs, *(artifact for result in job.results for artifact in result.artifacts))


def check_deadline(deadline_s: float | None) -> None:
    """Refuse a deadline that is not in the future.

    Raises:
        ValueError: it is zero, negative, infinite or not a number.
    """
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise ValueError(f"deadline_s is {deadline_s}; it must be a number of seconds above 0")


def check_repeated(first: Job, key: str, request: Request, priority: Priority, deadline_s: float | None) -> None:
    """Refuse a repeated key unless everything else is repeated too.

    Raises:
        IdempotencyConflict: ``first``, which was accepted under the key, is another job.
    """
    first_deadline_s = None if first.deadline_at is None else first.deadline_at - first.created_at
    same_deadline = (
        first_deadline_s is deadline_s
        if first_deadline_s is None or deadline_s is None
        else math.isclose(first_deadline_s, deadline_s, abs_tol=1e-3)  # the sum of two floats was rounded
    )
    if (first.request, first.priority) != (request, priority) or not same_deadline:
        raise IdempotencyConflict(f"idempotency key {key!r} was used with another request")
