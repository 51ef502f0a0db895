"""The worker: claim jobs, advance everything in flight one batch at a time, hand finished pictures over."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import Lease, TextToImage
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.worker.batch import BatchKey, Limits, Stage, next_batch
from service.worker.cost import CostTable
from service.worker.finish import Finisher
from service.worker.flight import ActiveJob, Flight, Seat
from service.worker.outage import Outage
from service.worker.residency import LoadedModel, Residency
from service.worker.runner import Picture, Runner

logger = logging.getLogger(__name__)

MAX_PICTURES = 64
"""No job is claimed while so many pictures are in flight: what stays in the queue, another worker can take. The last
claimed job can take the number beyond it."""
JOB_PICTURES = 10
"""A job has at most so many pictures. A claim asks for as many jobs as surely have room, again and again."""
IDLE_WAIT_S = 0.25
CLAIM_EVERY_S = 1.0
"""Looks into the store without having been told of a job: the bus is lossy."""
RENEW_EVERY_S = 1.0
"""Also how long a cancellation stays unnoticed when its event was lost."""


class Worker:
    """The loop of one device. Everything but media encoding and model loading happens on the thread that runs it."""

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
    ) -> None:
        self._name, self._store, self._bus, self._residency = name, store, bus, residency
        self._metrics, self._lease_s, self._models = metrics, lease_s, tuple(models)
        self._outage = Outage(metrics)
        self._runner, self._costs, self._limits = Runner(), CostTable(), Limits()
        self._finisher = Finisher(store, bus, artifacts, metrics)
        self._flight = Flight()
        self._loading: list[tuple[ActiveJob, Future[LoadedModel]]] = []
        self._told = True  # of new jobs
        self._claimed_at = self._renewed_at = 0.0

    def close(self) -> None:
        """Write what is finished and give the rest back to the queue; if the store is away, leases run out instead."""
        self._finisher.close()
        self._outage.attempt("release", lambda: self._store.release(self._name))

    def tick(self) -> None:
        """Listen, claim, run one batch."""
        self._listen(0.0 if len(self._flight) else IDLE_WAIT_S)
        self._flight.forget_ended()
        self._renew()
        self._claim()
        self._board_loaded()
        batch = next_batch(self._flight.items(), self._costs, self._limits, time.time())
        if batch is not None:
            self._run(batch.key, batch.rows)

    def warm_up(self, model: str) -> None:
        """Load a model and run one pass of every batch size, so that the first request meets nothing new."""
        loaded = self._residency.request(model).result()
        spec, numerics = loaded.model.spec, loaded.strict
        width, height = spec.sizes[0]
        request = TextToImage(
            model=model,
            prompt="",
            width=width,
            height=height,
            num_inference_steps=1,
            guidance_scale=1.0,
            scheduler=spec.solver,
            seed=0,
        )
        for lanes in (1, 2, 4, 8, 16):
            if lanes > numerics.max_lanes:
                break
            pictures = [Picture(request, seed, 0.0, loaded, numerics) for seed in range(lanes)]
            self._runner.encode(pictures)
            key = pictures[0].key
            began = time.perf_counter()
            self._stage(key, pictures)
            self._costs.measured(key, lanes, time.perf_counter() - began)

    def _listen(self, timeout_s: float) -> None:
        for event in self._bus.receive(timeout_s):
            if event.type == "submitted":
                self._told = True
            elif event.type == "cancelled" and event.job is not None:
                self._drop(event.job)

    def _renew(self) -> None:
        now = time.monotonic()
        leases = {job.lease.id: job for job in self._held()}
        if now - self._renewed_at < RENEW_EVERY_S or not leases or self._outage.left_s:
            return
        held = self._outage.attempt("renew", lambda: self._store.renew(list(leases), self._lease_s))
        if held is None:
            return
        self._renewed_at = now
        for lease_id, job in leases.items():
            if lease_id not in held and not job.ended:
                self._drop(job.id)

    def _held(self) -> list[ActiveJob]:
        return [*self._flight.jobs.values(), *(job for job, _ in self._loading)]

    def _claim(self) -> None:
        now, room = time.monotonic(), MAX_PICTURES - len(self._flight)
        room -= sum(job.lease.job.request.n for job, _ in self._loading)
        if room <= 0 or not (self._told or now - self._claimed_at > CLAIM_EVERY_S):
            return
        while room > 0 and not self._outage.left_s:
            limit = max(1, room // JOB_PICTURES)
            leases = self._outage.attempt("claim", partial(self._claim_up_to, limit))
            if leases is None:
                return
            self._claimed_at, self._told = now, len(leases) == limit
            for lease in leases:
                self._accept(lease)
                room -= lease.job.request.n
            if not self._told:
                return

    def _claim_up_to(self, limit: int) -> list[Lease]:
        return self._store.claim(self._name, limit, self._lease_s, self._models)

    def _accept(self, lease: Lease) -> None:
        job, record = ActiveJob(lease), lease.job
        if record.attempts <= 1 and record.started_at is not None:
            self._metrics.queue_wait_seconds.observe(max(0.0, record.started_at - record.created_at))
        self._loading.append((job, self._residency.request(record.request.model)))

    def _board_loaded(self) -> None:
        """Move the jobs whose model is loaded into the flight."""
        waiting, self._loading = self._loading, []
        for job, future in waiting:
            if not future.done():
                self._loading.append((job, future))
            elif (error := future.exception()) is not None:
                self._finisher.fail(job, "model_load_failed", str(error))
            else:
                self._flight.board(job, _pictures(job.lease, future.result()))

    def _run(self, key: BatchKey, rows: Sequence[int]) -> None:
        """Run a batch. When it raises, its halves are tried apart, so that only what fails alone is failed."""
        rows = [row for row in rows if self._flight.seats([row])]  # the failure of one picture drops its whole job
        if not rows:
            return
        seats = self._flight.seats(rows)
        lanes = sum(seat.picture.item(0).lanes for seat in seats)
        began = time.perf_counter()
        try:
            outputs = self._stage(key, [seat.picture for seat in seats])
        except Exception as error:
            self._split(key, rows, error)
            return
        self._measured(key, lanes, seats, time.perf_counter() - began)
        if key.stage is Stage.DECODE:
            for row, seat, pixels in zip(rows, seats, outputs, strict=True):
                self._flight.leave(row)
                self._finisher.finish(seat, pixels)
        elif key.stage is Stage.DENOISE:
            self._report(seats)

    def _stage(self, key: BatchKey, pictures: Sequence[Picture]) -> Sequence[NDArray[np.uint8]]:
        if key.stage is Stage.ENCODE:
            self._runner.encode(pictures)
        elif key.stage is Stage.DENOISE:
            self._runner.denoise(pictures)
        else:
            return self._runner.decode(pictures)
        return ()

    def _split(self, key: BatchKey, rows: Sequence[int], error: Exception) -> None:
        if len(rows) > 1:
            logger.warning("batch failed and is split", extra={"stage": key.stage, "rows": len(rows)}, exc_info=error)
            half = len(rows) // 2
            self._run(key, rows[:half])
            self._run(key, rows[half:])
            return
        for seat in self._flight.seats(rows):
            logger.error("picture failed", extra={"stage": key.stage, "job": seat.job.id}, exc_info=error)
            self._drop(seat.job.id)
            self._finisher.fail(seat.job, f"{key.stage}_failed", f"{type(error).__name__}: {error}")

    def _measured(self, key: BatchKey, lanes: int, seats: Sequence[Seat], seconds: float) -> None:
        self._costs.measured(key, lanes, seconds)
        self._metrics.stage_seconds.labels(key.stage).observe(seconds)
        self._metrics.batch_lanes.labels(key.stage).observe(lanes)
        padding = seats[0].picture.numerics.padded_lanes - lanes if key.stage is Stage.DENOISE else 0
        self._metrics.padded_lanes.labels(key.stage).inc(max(0, padding))

    def _report(self, seats: Sequence[Seat]) -> None:
        for job in {seat.job.id: seat.job for seat in seats}.values():
            self._bus.publish(Event("progress", job.id, *self._flight.steps(job)))

    def _drop(self, job_id: str) -> None:
        """Forget a job that was cancelled, lost or failed."""
        self._loading = [(job, future) for job, future in self._loading if job.id != job_id]
        rows = [picture.row for picture in self._flight.drop(job_id)]
        self._metrics.steps.labels("wasted").inc(sum(row.line for row in rows if row is not None))


def _pictures(lease: Lease, loaded: LoadedModel) -> list[Picture]:
    request = lease.job.request
    numerics = loaded.numerics(request.deterministic)
    return [Picture(request, request.seed + i, lease.job.created_at, loaded, numerics) for i in range(request.n)]
