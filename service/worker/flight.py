"""What a worker has in flight: jobs, and the pictures they are made of. Bookkeeping only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from service.jobs.job import Lease, Result
from service.worker.batch import Item
from service.worker.runner import Picture


@dataclass
class ActiveJob:
    """A claimed job until its outcome is in the store."""

    lease: Lease
    results: list[Result | None] = field(default_factory=list)
    """One place a picture; filled by the finisher."""
    ended: bool = False
    """Set by the finisher, last of all."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.lease.job.id


@dataclass(frozen=True)
class Seat:
    """A picture's place in its job."""

    job: ActiveJob
    index: int
    picture: Picture


class Flight:
    """Jobs by id and pictures by row number."""

    def __init__(self) -> None:
        self.jobs: dict[str, ActiveJob] = {}
        self._seats: dict[int, Seat] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Pictures that are not decoded yet."""
        return len(self._seats)

    def board(self, job: ActiveJob, pictures: Sequence[Picture]) -> None:
        """Take a job in with all its pictures."""
        self.jobs[job.id] = job
        job.results = [None] * len(pictures)
        for index, picture in enumerate(pictures):
            self._seats[next(self._numbers)] = Seat(job, index, picture)

    def items(self) -> list[Item]:
        """The next piece of work of every picture."""
        return [seat.picture.item(row) for row, seat in self._seats.items()]

    def seats(self, rows: Iterable[int]) -> list[Seat]:
        """The pictures of these rows, without those that left meanwhile."""
        return [self._seats[row] for row in rows if row in self._seats]

    def leave(self, row: int) -> None:
        """A picture is decoded."""
        del self._seats[row]

    def drop(self, job_id: str) -> list[Picture]:
        """Forget a job; returns its pictures that were still in flight."""
        self.jobs.pop(job_id, None)
        gone = [row for row, seat in self._seats.items() if seat.job.id == job_id]
        return [self._seats.pop(row).picture for row in gone]

    def steps(self, job: ActiveJob) -> tuple[int, int]:
        """(done, in all) steps of the job's average picture: of many pictures some wait while others are finished."""
        total, pictures = job.lease.job.request.num_inference_steps, len(job.results)
        rows = [seat.picture.row for seat in self._seats.values() if seat.job is job]
        done = sum(0 if row is None else row.line * total // len(row.plan.lines) for row in rows)
        return (done + (pictures - len(rows)) * total) // max(1, pictures), total

    def forget_ended(self) -> None:
        """Drop the jobs whose outcome is written."""
        for job in [job for job in self.jobs.values() if job.ended]:
            self.drop(job.id)
