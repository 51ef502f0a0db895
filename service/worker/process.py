"""The worker as a process: what it is made of, and its way from the first import to the last write."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch

from engines.life import EngineFailed, EngineLife
from kernels.backend import chosen
from models.adapters.whole import AdapterSet
from models.spec.model import ModelSpec
from service.catalogue import Catalogue
from service.heartbeat import HEARTBEAT, Heartbeat, exit_when_overdue
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import PROGRESS_EVERY_S, Bus
from service.jobs.open import open_store
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.settings import Settings, installed_adapters, worker_name
from service.status import WorkerStatus
from service.worker.adapted import AdaptedModels
from service.worker.loaded import LoadedModel
from service.worker.loop import Worker
from service.worker.opening import load_model
from service.worker.outage import Outage
from service.worker.parking import Parking
from service.worker.placement import Placement, host_limit, placement, set_up, set_up_loader, weights_limit
from service.worker.residency import Residency
from service.worker.upgrades import Upgrades

logger = logging.getLogger(__name__)

METRICS_EVERY_S = 1.0
STOP_CHECK_S = 0.1
DRAIN_S = 5.0
"""For finishing what can be finished after SIGTERM: half of what a supervisor gives a worker to end."""


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
        ValueError: a setting names no store, bus, place for pictures, device or kernel, or a model cannot be read.
    """
    stop, metrics, pid = Stop(), WorkerMetrics(), os.getpid()
    place = placement(settings)
    set_up(place, settings)
    settings.data.mkdir(parents=True, exist_ok=True)
    WorkerStatus(pid=pid, state="starting").write(settings.worker_status_path)
    specs = Catalogue(settings)

    def load(spec: ModelSpec, engines: EngineLife, adapters: AdapterSet | None) -> LoadedModel:
        return load_model(spec, settings, place, engines, adapters)

    upgrades = Upgrades(settings, place, load, metrics)
    opened = open_when_there(lambda: open_store(settings.store_url, settings.max_queued), metrics, stop)
    if opened is None:
        return
    with (
        closing(opened) as store,
        closing(Bus(settings.bus_address, PROGRESS_EVERY_S)) as bus,
        closing(upgrades),
        closing(_residency(specs, upgrades, metrics, settings, place)) as residency,
        closing(Heartbeat(settings.data / HEARTBEAT)) as heartbeat,
    ):
        artifacts = ArtifactStore(settings.artifacts_address)
        name, beat = worker_name(pid), heartbeat.beat
        worker = Worker(name, store, bus, artifacts, residency, metrics, settings.lease_s, specs, beat)
        if specs:
            _warm_up(worker, residency, next(iter(specs)))
        logger.info("worker ready", extra={"models": residency.resident})
        watchdog = exit_when_overdue(settings.data / HEARTBEAT)
        _turn(worker, specs, residency, upgrades, metrics, settings, stop)
        WorkerStatus(pid=pid, state="stopping").write(settings.worker_status_path)
        worker.drain(DRAIN_S)
        watchdog.set()
        worker.close()


def _residency(
    specs: Catalogue, upgrades: Upgrades, metrics: WorkerMetrics, settings: Settings, place: Placement
) -> Residency:
    def on_load(seconds: float, evicted: int) -> None:
        metrics.model_load_seconds.observe(seconds)
        metrics.evictions.inc(evicted)

    return Residency(
        specs,
        upgrades.open,
        weights_limit(place, settings.memory_bytes),
        on_load,
        AdaptedModels(upgrades.open, partial(installed_adapters, settings)),
        Parking(host_limit(place, settings.host_bytes)),
        partial(set_up_loader, place),
    )


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


def _warm_up(worker: Worker, residency: Residency, model: str) -> None:
    """The first passes; once more without the engine that fails in them, of which each model has a few."""
    while True:
        try:
            worker.warm_up(model)
        except EngineFailed as error:
            logger.warning("an engine failed in the first passes", extra={"model": model, "error": str(error)})
            residency.reopen([model])
        else:
            return


def _turn(
    worker: Worker,
    specs: Catalogue,
    residency: Residency,
    upgrades: Upgrades,
    metrics: WorkerMetrics,
    settings: Settings,
    stop: Stop,
) -> None:
    told_at = -METRICS_EVERY_S
    while not stop.asked:
        if time.monotonic() - told_at > METRICS_EVERY_S:
            status = WorkerStatus(
                pid=os.getpid(), state="ready", models=residency.resident, seconds_per_job=worker.seconds_per_job
            )
            replaced = residency.opened & frozenset(specs.replaced())
            residency.reopen([*replaced, *upgrades.look()])
            _tell(status, metrics, settings)
            told_at = time.monotonic()
        worker.tick()


def _tell(status: WorkerStatus, metrics: WorkerMetrics, settings: Settings) -> None:
    """Say how things are. A full disk is no reason to stop: what is old says so by its age."""
    _measure_device(metrics)
    try:
        status.write(settings.worker_status_path)
        metrics.write(settings.worker_metrics_path)
    except OSError as error:
        logger.warning("status and metrics cannot be written", extra={"error": str(error)})


def _measure_device(metrics: WorkerMetrics) -> None:
    for op, implementation in chosen():
        metrics.kernels.labels(op, implementation).set(1)
    if torch.cuda.is_initialized():
        metrics.device_memory_bytes.labels("allocated").set(torch.cuda.memory_allocated())
        metrics.device_memory_bytes.labels("peak").set(torch.cuda.max_memory_allocated())
        metrics.device_memory_bytes.labels("reserved").set(torch.cuda.memory_reserved())
        metrics.device_memory_bytes.labels("whole").set(torch.cuda.mem_get_info()[1])
