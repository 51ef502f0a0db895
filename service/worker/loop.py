"""The worker: claim jobs, advance everything in flight one batch at a time, hand finished work over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from engines.life import EngineFailed
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import Lease
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.worker.batch import BatchKey, Limits, Stage, next_batch
from service.worker.boarding import Boarding, Refused
from service.worker.cost import CostTable, JobPrices
from service.worker.finish import Finisher
from service.worker.flight import ActiveJob, Flight, Seat
from service.worker.lazy import LoadFailed
from service.worker.leases import Leases
from service.worker.residency import Residency
from service.worker.room import Room, free_what_can_be_freed, out_of_memory
from service.worker.runner import Preview, Runner
from service.worker.warm import warm_up

logger = logging.getLogger(__name__)

MAX_PICTURES = 64
"""No job is claimed while so many pieces are in flight: what stays in the queue, another worker can take. The last
claimed job can take the number beyond it."""
IDLE_WAIT_S = 0.25
LOAD_WAIT_S = 0.01
CLAIM_SHARE = 0.25
"""Of the last pass a worker with work waits at most so much for jobs that it was told of. A claim takes a millisecond,
and a job that misses the next pass waits for all of it."""
PARK_FROM_S = 1.0
"""Work of a job that is worth a checkpoint when the worker stops."""


class Worker:
    """The loop of one device. Everything but media encoding, model loading and talking to the store happens on the
    thread that runs it."""

    def __init__(
        self,
        name: str,
        store: JobStore,
        bus: Bus,
        artifacts: ArtifactStore,
        residency: Residency,
        metrics: WorkerMetrics,
        lease_s: float,
        models: Collection[str],
        beat: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._bus, self._residency, self._metrics, self._beat = bus, residency, metrics, beat
        self._leases = Leases(name, store, lease_s, models, metrics)
        self._costs = CostTable(lambda stage, ratio: metrics.cost_ratio.labels(stage).observe(ratio))
        self._runner, self._prices, self._limits, self._room = Runner(metrics), JobPrices(), Limits(), Room()
        self._finisher = Finisher(store, bus, artifacts, metrics)
        self._boarding, self._flight = Boarding(residency, artifacts), Flight()
        self._draining, self._wait_s, self._pass_s = False, 0.0, 0.0
        self._last: tuple[BatchKey, Sequence[int]] | None = None

    @property
    def seconds_per_job(self) -> dict[str, float]:
        """Seconds of the device for one more job, by model."""
        return self._prices.seconds_per_job

    def close(self) -> None:
        """Write what is finished and give the rest back to the queue; if the store is away, leases run out instead."""
        self._boarding.close()
        self._finisher.close()
        self._leases.close()

    def drain(self, grace_s: float) -> None:
        """Finish what can be finished within ``grace_s`` seconds; the rest gets a checkpoint where that pays."""
        self._draining = True
        until = time.monotonic() + grace_s
        for job in self._boarding.jobs:
            self._boarding.drop(job.id)
        while len(self._flight) and time.monotonic() < until:
            self._park_beyond(until - time.monotonic())
            self.tick()
        self._park_beyond(0.0)

    def tick(self) -> None:
        """Listen, claim, run one batch."""
        self._beat(0.0)
        self._listen(self._wait_s)
        self._flight.forget_ended()
        self._keep_leases()
        self._board()
        self._close_idle()
        items = [self._room.limited(item) for item in self._flight.items()]
        batch = next_batch(items, self._costs, self._limits, time.time(), resident=self._residency.memory)
        # Without a batch everything that is in flight waits for a load, which runs beside the loop.
        self._wait_s = 0.0 if batch is not None else LOAD_WAIT_S if items or self._boarding.jobs else IDLE_WAIT_S
        if batch is not None and batch.key.stage is Stage.LOAD:
            self._residency.start(batch.load, batch.evict)
        elif batch is not None:
            self._beat(self._costs.seconds(batch.key, batch.lanes))
            self._notice_preemption(batch.key)
            self._run(batch.key, batch.rows, batch.lanes)
            self._last = (batch.key, batch.rows)
        self._metrics.pieces_in_flight.set(len(self._flight))

    def warm_up(self, model: str) -> None:
        """Load a model and run one pass of every batch size, so that the first request meets nothing new."""
        warm_up(self._residency.request(model).result(), self._runner, self._costs)

    def _listen(self, timeout_s: float) -> None:
        for event in self._bus.receive(timeout_s):
            if event.type == "submitted":
                self._leases.told()
            elif event.type == "cancelled" and event.job is not None:
                self._drop(event.job)

    def _keep_leases(self) -> None:
        waiting = self._boarding.jobs
        held = {job.lease.id: job for job in (*self._flight.jobs.values(), *waiting)}
        for job in map(held.get, self._leases.renew(list(held))):
            if job is not None and not job.ended:
                self._drop(job.id)
        if self._draining:
            return
        room = MAX_PICTURES - len(self._flight) - sum(job.lease.job.request.n for job in waiting)
        patience_s = CLAIM_SHARE * self._pass_s if self._leases.claim(room) else 0.0
        # An idle worker has nothing better to do than to wait for the answer.
        for lease in self._leases.claimed(patience_s if len(self._flight) else IDLE_WAIT_S):
            self._accept(lease)

    def _accept(self, lease: Lease) -> None:
        record = lease.job
        if record.attempts <= 1 and record.started_at is not None:
            self._metrics.queue_wait_seconds.observe(max(0.0, record.started_at - record.created_at))
        self._boarding.take(lease)

    def _board(self) -> None:
        """Move the jobs whose model and inputs are there into the flight."""
        for job, boarded in self._boarding.ready():
            if isinstance(boarded, Refused):
                self._finisher.fail(job, boarded.code, str(boarded))
                continue
            self._flight.board(job, boarded)
            if not any(boarded):
                self._finisher.conclude(job)

    def _close_idle(self) -> None:
        """Let go of models with adapters that nobody asks for any more."""
        jobs = (*self._flight.jobs.values(), *self._boarding.jobs)
        self._residency.close_idle((job.lease.job.request.model, job.lease.job.request.loras) for job in jobs)

    def _run(self, key: BatchKey, rows: Sequence[int], part: int | None = None) -> None:
        """Run a batch, of a single row perhaps a part of the lanes. When it raises, its halves are tried apart, so that
        only what fails alone is failed."""
        rows = [row for row in rows if self._flight.seats([row])]  # the failure of one piece drops its whole job
        if not rows:
            return
        seats = self._flight.seats(rows)
        lanes = sum(seat.piece.lanes for seat in seats)
        if len(seats) == 1 and part is not None:
            lanes = min(lanes, part)
        resumed = [seat.piece for seat in seats if seat.piece.saved is not None]
        began = time.perf_counter()
        try:
            shown = self._runner.run(key.stage, [seat.piece for seat in seats], lanes if len(seats) == 1 else None)
        except Exception as error:
            logger.warning("batch failed", extra={"stage": key.stage, "rows": len(rows)}, exc_info=error)
            # Its traceback holds all that the batch had in memory, and what comes next needs that.
            failure = error.with_traceback(None)
        else:
            self._measured(key, lanes, seats, time.perf_counter() - began)
            self._metrics.resumed.inc(sum(piece.lines_done for piece in resumed))
            self._advanced(key, rows, seats, shown)
            return
        self._failed(key, rows, lanes, failure)

    def _advanced(self, key: BatchKey, rows: Sequence[int], seats: Sequence[Seat], shown: Sequence[Preview]) -> None:
        """Pass on what a batch brought."""
        for row, seat in zip(rows, seats, strict=True):
            if seat.piece.pixels is not None:
                self._flight.leave(row)
                self._finisher.finish(seat)
                if not self._flight.of(seat.job):
                    self._prices.ended(key.model)
        for preview in shown:
            (seat,) = (seat for seat in seats if seat.piece is preview.picture)
            self._finisher.preview(seat.job, seat.index, preview, self._flight.steps(seat.job))
        for job in {seat.job.id: seat.job for seat in seats}.values():
            if key.stage is Stage.DENOISE:
                self._bus.publish(Event("progress", job.id, *self._flight.steps(job)))
            if self._finisher.pace.due(job.work_s - job.saved_work_s):
                self._save(job)

    def _failed(self, key: BatchKey, rows: Sequence[int], lanes: int, error: Exception) -> None:
        if isinstance(error, EngineFailed) or isinstance(error.__cause__, EngineFailed):
            self._begin_anew(key)
            return
        code = "model_load_failed" if isinstance(error, LoadFailed) else f"{key.stage}_failed"
        if out_of_memory(error):
            code = "out_of_memory"
            self._metrics.out_of_memory.labels(key.stage).inc()
            self._room.too_small(key, lanes)
            free_what_can_be_freed()
        if len(rows) > 1:
            half = len(rows) // 2
            self._run(key, rows[:half])
            self._run(key, rows[half:])
            return
        if code == "out_of_memory" and self._divides(key, rows, lanes):
            self._run(key, rows, lanes // 2)
            return
        for seat in self._flight.seats(rows):
            logger.error("piece failed", extra={"stage": key.stage, "job": seat.job.id, "error": repr(error)})
            self._drop(seat.job.id)
            self._finisher.fail(seat.job, code, f"{type(error).__name__}: {error}")

    def _divides(self, key: BatchKey, rows: Sequence[int], lanes: int) -> bool:
        """Whether a part of one row's lanes takes less memory than all: it does not where lanes are filled up."""
        padded = max((seat.piece.numerics.padded_lanes for seat in self._flight.seats(rows)), default=0)
        return key.stage is Stage.DENOISE and lanes > max(1, padded)

    def _begin_anew(self, key: BatchKey) -> None:
        """An engine failed: the jobs that run on it are begun again, on what runs their model now."""
        self._residency.reopen([key.model])
        for job in list(self._flight.jobs.values()):
            if any(seat.piece.numerics.id == key.numerics_id for seat in self._flight.of(job)):
                self._drop(job.id)
                self._boarding.take(job.lease)

    def _measured(self, key: BatchKey, lanes: int, seats: Sequence[Seat], seconds: float) -> None:
        self._pass_s = seconds
        self._costs.measured(key, lanes, seconds)
        self._prices.spent(key.model, seconds)
        self._metrics.stage_seconds.labels(key.stage).observe(seconds)
        self._metrics.batch_lanes.labels(key.stage).observe(lanes)
        padding = seats[0].piece.numerics.padded_lanes - lanes if key.stage is Stage.DENOISE else 0
        self._metrics.padded_lanes.labels(key.stage).inc(max(0, padding))
        for seat in seats:
            seat.job.work_s += seconds / len(seats)

    def _notice_preemption(self, key: BatchKey) -> None:
        if self._last is None or self._last[0].stage is not Stage.DENOISE or self._last[0] == key:
            return
        if any(seat.piece.stage is Stage.DENOISE for seat in self._flight.seats(self._last[1])):
            self._metrics.preemptions.inc()

    def _save(self, job: ActiveJob) -> None:
        """Write a checkpoint of a job, unless one is being written."""
        seats = self._flight.of(job)
        if job.saving or not seats:
            return
        began = time.thread_time()
        standing = self._flight.standing(job)
        # One that has not begun does not know yet by which numerics it will.
        made_by = next((seat.piece for seat in seats if seat.piece.row is not None), seats[0].piece).numerics
        self._finisher.checkpoint(job, made_by.id, standing, time.thread_time() - began)

    def _park_beyond(self, left_s: float) -> None:
        """Take jobs out of the flight until the rest can be done in the time that is left, the longest first."""
        done = 0.0
        jobs = [job for job in self._flight.jobs.values() if self._flight.of(job)]
        for job in sorted(jobs, key=self._left_s):
            done += self._left_s(job)
            if done > left_s:
                if job.work_s - job.saved_work_s >= PARK_FROM_S:
                    self._save(job)
                self._flight.drop(job.id)

    def _left_s(self, job: ActiveJob) -> float:
        """What is predicted for the stages that a job's pieces are in, as if each ran alone."""
        items = [seat.piece.item(0) for seat in self._flight.of(job)]
        return sum(item.evaluations * self._costs.seconds(item.key, item.lanes) for item in items)

    def _drop(self, job_id: str) -> None:
        """Forget a job that was cancelled, lost or failed."""
        self._boarding.drop(job_id)
        self._metrics.steps.labels("wasted").inc(sum(piece.lines_done for piece in self._flight.drop(job_id)))
