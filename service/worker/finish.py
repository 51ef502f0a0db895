"""Hands finished work over: encodes it off the loop, stores the bytes, records the outcome; and so with previews and
checkpoints on the way."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import ImageToVideo, JobError, Result, Variant
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.worker.checkpoints import Entry, Pace, pack
from service.worker.flight import ActiveJob, Seat
from service.worker.media import MEDIA_TYPES, encode_picture, encode_preview
from service.worker.outage import Outage
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.previews import Previews
from service.worker.runner import Preview
from service.worker.video import encode_clip

logger = logging.getLogger(__name__)

GIVE_UP_S = 900.0
"""How long an outcome waits for a store that is away: then the job is left to its lease, and made again. Less than the
age at which retention deletes a picture that no job refers to."""


class Finisher:
    """One thread beside the loop. Outcomes are written in the order in which the loop asked for them."""

    def __init__(self, store: JobStore, bus: Bus, artifacts: ArtifactStore, metrics: WorkerMetrics) -> None:
        self._store, self._bus, self._artifacts, self._metrics = store, bus, artifacts, metrics
        self._outage, self._closing = Outage(metrics), threading.Event()
        self._previews, self.pace = Previews(), Pace()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finish")

    def finish(self, seat: Seat) -> Future[None]:
        """Encode and store one piece whose pixels are there; with the job's last one, complete the job."""
        return self._thread.submit(self._guarded, seat.job, lambda: self._finish(seat))

    def conclude(self, job: ActiveJob) -> Future[None]:
        """Complete a job all of whose pieces are stored."""
        return self._thread.submit(self._guarded, job, lambda: self._conclude(job))

    def fail(self, job: ActiveJob, code: str, message: str) -> Future[None]:
        """End the job as failed."""
        return self._thread.submit(self._fail, job, JobError(code=code, message=message))

    def preview(self, job: ActiveJob, index: int, shown: Preview, steps: tuple[int, int]) -> Future[None]:
        """Show what a picture looks like on its way: ``steps`` done and in all. A preview that fails is left out."""
        return self._thread.submit(self._preview, job, index, shown, steps)

    def checkpoint(self, job: ActiveJob, numerics_id: str, pieces: Sequence[Entry], seconds: float) -> Future[None]:
        """Write a checkpoint, which took the loop so many seconds already. One that fails is left out."""
        job.saving, job.saved_work_s = True, job.work_s
        return self._thread.submit(self._checkpoint, job, numerics_id, pieces, seconds)

    def close(self) -> None:
        """Wait until everything handed over is written, but not for a store that is away."""
        self._closing.set()
        self._thread.shutdown(wait=True)

    def _guarded(self, job: ActiveJob, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            logger.exception("result could not be stored", extra={"job": job.id})
            self._fail(job, JobError(code="storage_failed", message=str(error)))

    def _finish(self, seat: Seat) -> None:
        began = time.perf_counter()
        piece, job = seat.piece, seat.job
        job.results[seat.index] = self._stored(piece)
        self._metrics.stage_seconds.labels("media").observe(time.perf_counter() - began)
        self._metrics.steps.labels("useful").inc(piece.lines_done)
        if isinstance(piece, Picture) and piece.row is not None and piece.pixels is not None:
            self._previews.learn(piece.numerics.id, piece.row.state[0], piece.pixels)
        if all(result is not None for result in job.results):
            self._conclude(job)

    def _stored(self, piece: Piece) -> Result:
        request, pixels = piece.request, piece.pixels
        if pixels is None:
            raise ValueError("a piece is finished before it is decoded")
        variants: tuple[Variant, ...] = ()
        if isinstance(request, ImageToVideo):
            clip = encode_clip(pixels, request, piece.seed)
            content = clip.content
            variants = tuple(
                Variant(name=name, content_sha256=self._artifacts.put(data), media_type=media_type)
                for name, (data, media_type) in clip.variants.items()
            )
        else:
            content = encode_picture(pixels, request, piece.seed)
        return Result(
            content_sha256=self._artifacts.put(content),
            media_type=MEDIA_TYPES[request.output_format],
            seed=piece.seed,
            numerics_id=piece.numerics.id,
            variants=variants,
        )

    def _conclude(self, job: ActiveJob) -> None:
        done = [result for result in job.results if result is not None]
        if self._recorded("complete", lambda: self._store.complete(job.lease.id, done)):
            self._count(job, "completed", "")
            self._remove(job.checkpoint)
        self._end(job)

    def _preview(self, job: ActiveJob, index: int, shown: Preview, steps: tuple[int, int]) -> None:
        try:
            numerics_id, pixels = shown.picture.numerics.id, shown.pixels
            if pixels is not None:
                self._previews.learn(numerics_id, shown.latent, pixels)
            elif self._previews.knows(numerics_id):
                pixels = self._previews.pixels(numerics_id, shown.latent)
            else:
                return
            name = self._artifacts.put(encode_preview(pixels, shown.picture.request))
            self._bus.publish(Event("preview", job.id, *steps, index=index, part=shown.part, preview=name))
            self._metrics.previews.inc()
        except Exception:
            logger.exception("preview left out", extra={"job": job.id})

    def _checkpoint(self, job: ActiveJob, numerics_id: str, pieces: Sequence[Entry], seconds: float) -> None:
        began, outcome = time.thread_time(), "failed"
        try:
            name = self._artifacts.put(pack(job.id, numerics_id, pieces))
            if self._outage.attempt("checkpoint", lambda: self._store.checkpoint(job.lease.id, name)):
                previous, job.checkpoint, outcome = job.checkpoint, name, "written"
                self._remove(previous)
        except Exception:
            logger.exception("checkpoint left out", extra={"job": job.id})
        finally:
            job.saving = False
            cost_s = seconds + time.thread_time() - began
            self.pace.took(cost_s)
            self._metrics.checkpoints.labels(outcome).inc()
            self._metrics.checkpoint_seconds.observe(cost_s)

    def _remove(self, artifact: str | None) -> None:
        """Delete a checkpoint that nobody needs any more, which may be much larger than a picture."""
        if artifact is None:
            return
        try:
            self._artifacts.remove(artifact, stored_before=time.time())
        except OSError as error:  # retention tries again
            logger.warning("checkpoint not deleted", extra={"artifact": artifact, "error": str(error)})

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
