"""The wiring of the API: what it is given, its routes, and what runs beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from models.spec.model import ModelSpec
from service.api import health, images, jobs, models
from service.api.context import Services
from service.api.errors import add_error_handlers
from service.api.events import JobWatch
from service.api.middleware import RequestMiddleware
from service.api.schema import ErrorEnvelope
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus
from service.jobs.store import JobStore
from service.metrics import ApiMetrics
from service.settings import Settings

REAP_S = 5.0
"""How often leases are looked at. Only a worker without a supervisor, or on a stopped machine, is found this way."""

Companion = Callable[[Services], Awaitable[None]]
"""Something that runs as long as the application does, such as the worker's supervisor."""

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    store: JobStore,
    bus: Bus,
    artifacts: ArtifactStore,
    installed: dict[str, ModelSpec],
    companions: Sequence[Companion] = (),
) -> FastAPI:
    """The application. It closes nothing that it is given."""
    metrics = ApiMetrics()
    services = Services(settings, store, bus, artifacts, installed, metrics, JobWatch(bus, store))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        services.watch.start()
        tasks = [asyncio.create_task(_run(companion, services)) for companion in (_reap, *companions)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        services.watch.stop()

    # The two answers for all errors: the framework's own description of a 422 would be wrong here.
    app = FastAPI(
        title="Darkroom",
        lifespan=lifespan,
        responses={"4XX": {"model": ErrorEnvelope}, "5XX": {"model": ErrorEnvelope}, 422: {"model": ErrorEnvelope}},
    )
    app.state.services = services
    add_error_handlers(app)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    for routes in (images, jobs, models, health):
        app.include_router(routes.router)
    return app


async def _run(companion: Companion, services: Services) -> None:
    try:
        await companion(services)
    except Exception:
        logger.exception("a companion of the API ended")


async def _reap(services: Services) -> None:
    while True:
        await asyncio.sleep(REAP_S)
        try:
            services.metrics.reaped.inc(await to_thread.run_sync(services.store.reap))
        except Exception:  # A full disk now must not stop the reaping for ever.
            logger.exception("leases could not be looked at")
