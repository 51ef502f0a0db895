"""Health checks and metrics, for load balancers and Prometheus."""

from __future__ import annotations

import time

from anyio import to_thread
from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.context import UsesServices
from service.api.routing import make_router
from service.api.views import Health
from service.errors import Unavailable
from service.status import read_status

router = make_router("", "operations")


@router.get("/health/live")
async def live() -> Health:
    """200 as long as this process serves requests."""
    return Health(status="live")


@router.get("/health/ready")
async def ready(services: UsesServices) -> Health:
    """200 when a worker is alive and has its models loaded. The file is the truth; the bus may have lost the news. A
    server that keeps no worker is ready as long as it serves: jobs wait for those that run elsewhere."""
    if not services.settings.workers:
        return Health(status="ready")
    status = read_status(services.settings.worker_status_path)
    if status is None:
        raise Unavailable("no worker has reported yet", code="not_ready")
    if not status.alive:
        raise Unavailable(f"worker process {status.pid} has died", code="not_ready")
    if status.state != "ready":
        raise Unavailable(f"worker process {status.pid} is {status.state}", code="not_ready")
    return Health(status="ready", models=list(status.models))


@router.get("/metrics", response_class=Response)
async def metrics(services: UsesServices) -> Response:
    """The metrics of this process and of the worker. Those of the store are left out while it is away."""
    try:
        stats = await to_thread.run_sync(services.store.stats)
    except Unavailable:
        stats = None
    services.metrics.show_queue(stats, time.time())
    text = services.metrics.exposition(services.settings.worker_metrics_path)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
