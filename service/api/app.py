"""The wiring of the API: what it is given, its routes, and what runs beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from models.spec.model import ModelSpec
from service.api import health, images, jobs, models, videos
from service.api.admission import Line
from service.api.context import Services
from service.api.errors import add_error_handlers
from service.api.events import JobWatch
from service.api.forecast import Forecast
from service.api.middleware import RequestMiddleware
from service.api.reading import Reader
from service.api.security import ApiKeys
from service.errors import Unavailable
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus
from service.jobs.retention import Deleted, collect
from service.jobs.store import JobStore
from service.metrics import ApiMetrics
from service.settings import Settings

OBSERVE_S = 5.0
"""How often the store is asked how fast jobs end, where no worker of this machine says so."""
REAP_S = 5.0
"""How often leases are looked at. Only a worker without a supervisor, or on a stopped machine, is found this way."""
COLLECT_S = 600.0
"""How often old jobs and their pictures are deleted."""

Companion = Callable[[Services], Awaitable[None]]
"""Something that runs as long as the application does, such as the worker's supervisor."""

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    store: JobStore,
    bus: Bus,
    artifacts: ArtifactStore,
    installed: Mapping[str, ModelSpec],
    companions: Sequence[Companion] = (),
) -> FastAPI:
    """The application. It closes nothing that it is given.

    Raises:
        ValueError: ``settings.api_keys`` are no hashes.
    """
    reader = Reader(store, at_once=settings.store_url.startswith("sqlite:"))
    services = Services(
        settings=settings,
        store=store,
        reader=reader,
        bus=bus,
        artifacts=artifacts,
        models=installed,
        metrics=ApiMetrics(keeps_worker=settings.workers > 0),
        watch=JobWatch(bus, reader),
        line=Line(settings.max_queued),
        forecast=Forecast(settings.worker_status_path),
    )
    app = FastAPI(title="Darkroom", lifespan=lambda _: _accompanied(services, companions))
    app.state.services = services
    add_error_handlers(app)
    app.add_middleware(RequestMiddleware, services.metrics, ApiKeys(settings.api_keys), settings.max_upload_bytes)
    # Those that are asked most come first: an address is tried against one after the other. An included router would
    # be a tree, which is walked twice.
    for router in (jobs.direct, jobs.router, videos.router, images.router, models.router, health.router):
        app.routes.extend(router.routes)
    return app


@asynccontextmanager
async def _accompanied(services: Services, companions: Sequence[Companion]) -> AsyncIterator[None]:
    """What runs beside the requests, from the first to the last."""
    services.watch.start()
    always = (_reap, _collect) if services.settings.workers else (_reap, _collect, _observe)
    tasks = [asyncio.create_task(_run(companion, services)) for companion in (*always, *companions)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    services.watch.stop()


async def _run(companion: Companion, services: Services) -> None:
    try:
        await companion(services)
    except Exception:
        logger.exception("a companion of the API ended")


async def _reap(services: Services) -> None:
    store, away = services.store, False
    while True:
        await asyncio.sleep(REAP_S)
        try:
            if away:
                # No worker could renew its leases meanwhile. One that lives does so before the next look.
                await to_thread.run_sync(store.stats)
                away = False
            else:
                services.metrics.reaped.inc(await to_thread.run_sync(store.reap))
        except Unavailable as error:
            away = True
            logger.warning("leases could not be looked at", extra={"error": error.message})
        except Exception:  # A fault now must not stop the reaping for ever.
            logger.exception("leases could not be looked at")


async def _observe(services: Services) -> None:
    while True:
        await asyncio.sleep(OBSERVE_S)
        try:
            services.forecast.observe(await to_thread.run_sync(services.store.stats))
        except Unavailable:  # which whoever submits is told
            continue


async def _collect(services: Services) -> None:
    retention = services.settings.retention
    while True:
        await asyncio.sleep(COLLECT_S)
        try:
            deleted = await to_thread.run_sync(
                collect, services.store, services.artifacts, retention, abandon_on_cancel=True
            )
            _count(deleted, services.metrics)
        except Unavailable as error:
            logger.warning("old jobs could not be deleted", extra={"error": error.message})
        except Exception:  # A fault now must not keep old jobs for ever.
            logger.exception("old jobs could not be deleted")


def _count(deleted: Deleted, metrics: ApiMetrics) -> None:
    metrics.deleted.labels("jobs").inc(deleted.jobs)
    metrics.deleted.labels("artifacts").inc(deleted.artifacts)
    metrics.artifact_bytes.set(deleted.bytes_left)
    if deleted.jobs or deleted.artifacts:
        extra = {"jobs": deleted.jobs, "artifacts": deleted.artifacts, "bytes": deleted.bytes}
        logger.info("old jobs deleted", extra=extra)
