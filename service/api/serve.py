"""``darkroom serve``: the API, and a supervised worker unless workers run elsewhere."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import closing

import uvicorn
from anyio import to_thread

from service.api.app import create_app
from service.api.context import Services
from service.catalogue import Catalogue
from service.errors import Unavailable
from service.heartbeat import HEARTBEAT, overdue_s
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.open import open_store
from service.settings import Settings, worker_name
from service.status import read_status
from service.supervisor import supervise

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients keep theirs. httpx, and so the openai client, keeps 5 s,
which is uvicorn's default too, and a request that is sent in the moment in which the server closes is lost."""
GRACE_S = 10
"""Time for open requests, and then for the worker, to finish on shutdown."""

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        ValueError: a setting names no store, bus or place for pictures, or a model cannot be read.
        RuntimeError: the store has another version.
        Unavailable: the store does not answer.
    """
    # uvicorn repeats the signal that ended it; with the default handler that would kill before anything is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    models = Catalogue(settings)
    settings.data.mkdir(parents=True, exist_ok=True)
    with (
        closing(open_store(settings.store_url, settings.max_queued)) as store,
        closing(Bus(settings.bus_address)) as bus,
    ):
        artifacts = ArtifactStore(settings.artifacts_address)
        uvicorn.run(
            create_app(settings, store, bus, artifacts, models, [keep_worker] if settings.workers else []),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )


async def keep_worker(services: Services) -> None:
    """Keep a worker alive, and give its jobs back at once when it dies."""
    settings, metrics = services.settings, services.metrics
    starts = 0

    def on_start(pid: int) -> None:
        nonlocal starts
        del pid
        metrics.worker_up.set(1)
        metrics.worker_restarts.inc(1 if starts else 0)
        starts += 1

    async def on_exit(pid: int) -> None:
        metrics.worker_up.set(0)
        await _return_jobs(services, pid)

    # A server that was killed took its worker along and could not say so.
    last = read_status(settings.worker_status_path)
    if last is not None and not last.alive:
        await _return_jobs(services, last.pid)
    command = [sys.executable, "-m", "service.cli", "worker", "--supervised"]

    def hangs(pid: int) -> bool:
        return overdue_s(settings.data / HEARTBEAT, pid) > 0

    await supervise(command, settings.child_environment(), on_start, on_exit, grace_s=GRACE_S, hangs=hangs)


async def _return_jobs(services: Services, pid: int) -> None:
    services.settings.worker_status_path.unlink(missing_ok=True)
    try:
        touched = await to_thread.run_sync(services.store.reap, worker_name(pid))
    except Unavailable as error:
        logger.warning("jobs wait for the end of their leases", extra={"pid": pid, "error": error.message})
        return
    services.metrics.reaped.inc(touched)
    if touched:
        services.bus.publish(Event(type="submitted"))
