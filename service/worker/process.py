"""The worker as a process: what it is made of, and its way from the first import to the last write."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing

import torch

from models.spec.model import ModelSpec
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import PROGRESS_EVERY_S, Bus
from service.jobs.open import open_store
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.settings import Settings, installed_models, worker_name
from service.status import WorkerStatus
from service.worker.loop import Worker
from service.worker.outage import Outage
from service.worker.residency import LoadedModel, Residency, load_model

logger = logging.getLogger(__name__)

METRICS_EVERY_S = 1.0
STOP_CHECK_S = 0.1


class Stop:
    """Whether SIGTERM or SIGINT has come."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def run_worker(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Ready when the default model is loaded and warm.

    Raises:
        ValueError: a setting names no store, bus or place for pictures, or a model cannot be read.
    """
    stop, metrics, pid = Stop(), WorkerMetrics(), os.getpid()
    torch.set_num_threads(settings.threads)
    settings.data.mkdir(parents=True, exist_ok=True)
    WorkerStatus(pid=pid, state="starting").write(settings.worker_status_path)
    specs = installed_models(settings)

    def load(spec: ModelSpec) -> LoadedModel:
        with metrics.model_load_seconds.time():
            return load_model(spec, settings)

    opened = open_when_there(lambda: open_store(settings.store_url, settings.max_queued), metrics, stop)
    if opened is None:
        return
    with (
        closing(opened) as store,
        closing(Bus(settings.bus_address, PROGRESS_EVERY_S)) as bus,
        closing(Residency(specs, load)) as residency,
    ):
        artifacts = ArtifactStore(settings.artifacts_address)
        worker = Worker(worker_name(pid), store, bus, artifacts, residency, metrics, settings.lease_s, specs)
        if specs:
            worker.warm_up(next(iter(specs)))
        WorkerStatus(pid=pid, state="ready", models=residency.resident).write(settings.worker_status_path)
        logger.info("worker ready", extra={"models": residency.resident})
        _turn(worker, metrics, settings, stop)
        worker.close()
        WorkerStatus(pid=pid, state="stopping").write(settings.worker_status_path)


def open_when_there(open_it: Callable[[], JobStore], metrics: WorkerMetrics, stop: Stop) -> JobStore | None:
    """The store, waiting until it answers; None when the worker is to stop before."""
    outage = Outage(metrics)
    while not stop.asked:
        store = outage.attempt("open", open_it)
        if store is not None:
            return store
        while outage.left_s and not stop.asked:
            time.sleep(min(outage.left_s, STOP_CHECK_S))
    return None


def _turn(worker: Worker, metrics: WorkerMetrics, settings: Settings, stop: Stop) -> None:
    written_at = 0.0
    while not stop.asked:
        worker.tick()
        if time.monotonic() - written_at > METRICS_EVERY_S:
            metrics.write(settings.worker_metrics_path)
            written_at = time.monotonic()
