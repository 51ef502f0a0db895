"""``darkroom serve``: the API and one supervised worker."""

from __future__ import annotations

import signal
import sys

import uvicorn
from anyio import to_thread

from service.api.app import create_app
from service.api.context import Services
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.sqlite import SQLiteStore
from service.settings import Settings, installed_models, worker_name
from service.status import read_status
from service.supervisor import supervise

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients keep theirs. httpx, and so the openai client, keeps 5 s,
which is uvicorn's default too, and a request that is sent in the moment in which the server closes is lost."""
GRACE_S = 10
"""Time for open requests, and then for the worker, to finish on shutdown."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    # uvicorn repeats the signal that ended it; with the default handler that would kill before anything is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    models = installed_models(settings)
    settings.data.mkdir(parents=True, exist_ok=True)
    store = SQLiteStore(settings.store_path, max_queued=settings.max_queued)
    bus = Bus(settings.bus_path)
    try:
        app = create_app(settings, store, bus, ArtifactStore(settings.artifacts_path), models, [keep_worker])
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
    finally:
        bus.close()
        store.close()


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
    await supervise(command, settings.child_environment(), on_start, on_exit, grace_s=GRACE_S)


async def _return_jobs(services: Services, pid: int) -> None:
    services.settings.worker_status_path.unlink(missing_ok=True)
    touched = await to_thread.run_sync(services.store.reap, worker_name(pid))
    services.metrics.reaped.inc(touched)
    if touched:
        services.bus.publish(Event(type="submitted"))
