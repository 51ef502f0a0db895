"""Hands finished pictures over: encodes them off the loop, stores the bytes, records the outcome."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import JobError, Result
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.worker.flight import ActiveJob, Seat
from service.worker.media import MEDIA_TYPES, encode_picture
from service.worker.outage import Outage

logger = logging.getLogger(__name__)

GIVE_UP_S = 900.0
"""How long an outcome waits for a store that is away: then the job is left to its lease, and made again. Less than the
age at which retention deletes a picture that no job refers to."""


class Finisher:
    """One thread beside the loop. Outcomes are written in the order in which the loop asked for them."""

    def __init__(self, store: JobStore, bus: Bus, artifacts: ArtifactStore, metrics: WorkerMetrics) -> None:
        self._store, self._bus, self._artifacts, self._metrics = store, bus, artifacts, metrics
        self._outage, self._closing = Outage(metrics), threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finish")

    def finish(self, seat: Seat, pixels: NDArray[np.uint8]) -> Future[None]:
        """Encode and store one picture; with the job's last one, complete the job."""
        return self._thread.submit(self._guarded, seat, pixels)

    def fail(self, job: ActiveJob, code: str, message: str) -> Future[None]:
        """End the job as failed."""
        return self._thread.submit(self._fail, job, JobError(code=code, message=message))

    def close(self) -> None:
        """Wait until everything handed over is written, but not for a store that is away."""
        self._closing.set()
        self._thread.shutdown(wait=True)

    def _guarded(self, seat: Seat, pixels: NDArray[np.uint8]) -> None:
        try:
            self._finish(seat, pixels)
        except Exception as error:
            logger.exception("picture could not be stored", extra={"job": seat.job.id})
            self._fail(seat.job, JobError(code="storage_failed", message=str(error)))

    def _finish(self, seat: Seat, pixels: NDArray[np.uint8]) -> None:
        began = time.perf_counter()
        picture, job = seat.picture, seat.job
        content = encode_picture(pixels, picture.request, picture.seed)
        job.results[seat.index] = Result(
            content_sha256=self._artifacts.put(content),
            media_type=MEDIA_TYPES[picture.request.output_format],
            seed=picture.seed,
            numerics_id=picture.numerics.id,
        )
        self._metrics.stage_seconds.labels("media").observe(time.perf_counter() - began)
        self._metrics.steps.labels("useful").inc(len(picture.row.plan.lines) if picture.row else 0)
        done = [result for result in job.results if result is not None]
        if len(done) == len(job.results):
            if self._recorded("complete", lambda: self._store.complete(job.lease.id, done)):
                self._count(job, "completed", "")
            self._end(job)

    def _fail(self, job: ActiveJob, error: JobError) -> None:
        try:
            if self._recorded("fail", lambda: self._store.fail(job.lease.id, error)):
                self._count(job, "failed", error.code)
        except Exception:
            # A fault of the store. The lease runs out and the job goes back to the queue.
            logger.exception("failure could not be recorded", extra={"job": job.id})
        self._end(job)

    def _recorded(self, verb: str, write: Callable[[], bool]) -> bool:
        """Whether the outcome is in the store, which is waited for. Not if the lease was lost meanwhile, or if nothing
        can be known of it."""
        give_up_at = time.monotonic() + GIVE_UP_S
        while not (self._closing.is_set() and self._outage.left_s):
            recorded = self._outage.attempt(verb, write)
            if recorded is not None:
                return recorded
            if time.monotonic() >= give_up_at:
                break
            self._closing.wait(self._outage.left_s)
        return False

    def _end(self, job: ActiveJob) -> None:
        job.ended = True
        self._bus.publish(Event("finished", job.id))

    def _count(self, job: ActiveJob, outcome: str, reason: str) -> None:
        self._metrics.jobs.labels(outcome, reason).inc()
        self._metrics.job_seconds.observe(time.time() - (job.lease.job.started_at or time.time()))
