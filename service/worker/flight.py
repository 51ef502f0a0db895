"""What a worker has in flight: jobs, and the pieces they are made of. Bookkeeping only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from service.jobs.job import Lease, Result
from service.worker.batch import Item
from service.worker.checkpoints import Entry
from service.worker.piece import Piece


@dataclass
class ActiveJob:
    """A claimed job until its outcome is in the store."""

    lease: Lease
    results: list[Result | None] = field(default_factory=list)
    """One place a piece; filled by the finisher."""
    ended: bool = False
    """Set by the finisher, last of all."""
    work_s: float = 0.0
    """Its share of the device's time so far."""
    saved_work_s: float = 0.0
    """Of that, what its last checkpoint holds."""
    saving: bool = False
    """Whether a checkpoint is being written; cleared by the finisher."""
    checkpoint: str | None = None
    """The artifact that holds its last one."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.lease.job.id


@dataclass(frozen=True)
class Seat:
    """A piece's place in its job."""

    job: ActiveJob
    index: int
    piece: Piece


class Flight:
    """Jobs by id and pieces by row number."""

    def __init__(self) -> None:
        self.jobs: dict[str, ActiveJob] = {}
        self._seats: dict[int, Seat] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Pieces that are not decoded yet."""
        return len(self._seats)

    def board(self, job: ActiveJob, pieces: Sequence[Piece | None]) -> None:
        """Take a job in with all its pieces; None is one that is stored already."""
        self.jobs[job.id] = job
        job.results = job.results or [None] * len(pieces)
        for index, piece in enumerate(pieces):
            if piece is not None:
                self._seats[next(self._numbers)] = Seat(job, index, piece)

    def items(self) -> list[Item]:
        """The next piece of work of every piece."""
        return [seat.piece.item(row) for row, seat in self._seats.items()]

    def seats(self, rows: Iterable[int]) -> list[Seat]:
        """The pieces of these rows, without those that left meanwhile."""
        return [self._seats[row] for row in rows if row in self._seats]

    def of(self, job: ActiveJob) -> list[Seat]:
        """The pieces of a job that are not decoded yet."""
        return [seat for seat in self._seats.values() if seat.job is job]

    def leave(self, row: int) -> None:
        """A piece is decoded."""
        del self._seats[row]

    def drop(self, job_id: str) -> list[Piece]:
        """Forget a job; returns its pieces that were still in flight."""
        self.jobs.pop(job_id, None)
        gone = [row for row, seat in self._seats.items() if seat.job.id == job_id]
        return [self._seats.pop(row).piece for row in gone]

    def steps(self, job: ActiveJob) -> tuple[int, int]:
        """(done, in all) steps of the job's average piece: of many some wait while others are finished."""
        pieces = [seat.piece for seat in self.of(job)]
        total = max((piece.steps for piece in pieces), default=job.lease.job.request.num_inference_steps)
        finished = len(job.results) - len(pieces)
        return (sum(piece.steps_done for piece in pieces) + finished * total) // max(1, len(job.results)), total

    def standing(self, job: ActiveJob) -> list[Entry]:
        """Where each piece of a job stands, for its checkpoint. One that is decoded and not stored yet is left out: it
        would be begun again."""
        entries: list[Entry] = list(job.results)
        for seat in self.of(job):
            entries[seat.index] = seat.piece.snapshot()
        return entries

    def forget_ended(self) -> None:
        """Drop the jobs whose outcome is written."""
        for job in [job for job in self.jobs.values() if job.ended]:
            self.drop(job.id)
