"""What is known of the future: how long a job waits and takes, from what the worker of this machine has published, or
from how fast jobs end where workers run elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.api.views import Progress
from service.jobs.job import Job, JobState, Priority
from service.jobs.store import QueueStats
from service.status import WorkerStatus, read_status

FRESH_S = 1.0
"""How long a look into the worker's file is good for."""
OBSERVED = 12
"""Observations of the store that count; with one every five seconds the last minute."""


@dataclass(frozen=True)
class Outlook:
    """Of one job."""

    queue_position: int | None
    eta_s: float | None
    """Seconds until it ends."""


class Forecast:
    """Predictions, None where nothing is known.

    Args:
        path: the worker's status file.
        clock: seconds that never go back.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._status: WorkerStatus | None = None
        self._looked_at = -FRESH_S
        self._ends: deque[tuple[float, int]] = deque(maxlen=OBSERVED)
        self._observed_s: float | None = None

    @property
    def status(self) -> WorkerStatus | None:
        """What the worker last said, if it lives."""
        if self._clock() - self._looked_at >= FRESH_S:
            status = read_status(self._path)
            self._status = status if status is not None and status.alive else None
            self._looked_at = self._clock()
        return self._status

    def seconds_per_job(self, model: str) -> float | None:
        """How long workers are busy for one more job of this model; for one of any model where only that is known."""
        told = None if self.status is None else self.status.seconds_per_job.get(model)
        return self._observed_s if told is None else told

    def observe(self, stats: QueueStats) -> None:
        """Take in what the store counts, every few seconds. While jobs wait no worker idles, so as many end as can."""
        if not stats.queued:
            self._ends.clear()
            return
        self._ends.append(
            (self._clock(), sum(stats.ended.get(state, 0) for state in (JobState.COMPLETED, JobState.FAILED)))
        )
        (first_at, first), (last_at, last) = self._ends[0], self._ends[-1]
        if last > first:
            self._observed_s = (last_at - first_at) / (last - first)

    def wait_s(self, stats: QueueStats, model: str, priority: Priority) -> float | None:
        """Until a job that is submitted now is begun."""
        seconds = self.seconds_per_job(model)
        if seconds is None:
            return None
        order = list(Priority)
        ahead = [found.queued for other, found in stats.classes.items() if order.index(other) <= order.index(priority)]
        return seconds * sum(ahead)

    def of(self, job: Job, position: int | None, progress: Progress | None) -> Outlook:
        """What to expect of a job of which so many come before it, or which has come so far."""
        if job.state is JobState.QUEUED:
            seconds = self.seconds_per_job(job.request.model)
            eta_s = None if seconds is None or position is None else seconds * (position + 1)
            return Outlook(position, _rounded(eta_s))
        if job.state is JobState.RUNNING and progress is not None and progress.step and job.started_at is not None:
            taken_s = max(0.0, time.time() - job.started_at)
            return Outlook(None, _rounded(taken_s * (progress.steps - progress.step) / progress.step))
        return Outlook(None, None)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
