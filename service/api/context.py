"""What the routes share, and the few things more than one of them does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Header, Request

from models.spec.model import ModelSpec
from service.api.events import JobWatch
from service.errors import InvalidRequest, UnknownJob
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import Job, JobState, Priority, Result, TextToImage
from service.jobs.store import JobStore
from service.metrics import ApiMetrics
from service.settings import Settings

MAX_KEY_CHARS = 255


@dataclass(frozen=True)
class Services:
    """Everything a route may touch. Made once by ``create_app``."""

    settings: Settings
    store: JobStore
    bus: Bus
    artifacts: ArtifactStore
    models: dict[str, ModelSpec]
    metrics: ApiMetrics
    watch: JobWatch

    # Every call of the store goes to a thread, for it can block: a write waits while another process writes, and
    # inside this process every call waits for the one connection. The detour costs some 0.1 ms; without it one slow
    # disk write would hold up every open request.

    async def submit(
        self, request: TextToImage, idempotency_key: str | None, priority: Priority, deadline_s: float | None
    ) -> Job:
        """Accept a job and ring the workers' bell."""
        submit = partial(self.store.submit, request, idempotency_key, priority=priority, deadline_s=deadline_s)
        job = await to_thread.run_sync(submit)
        self.bus.publish(Event(type="submitted", job=job.id))
        return job

    async def cancel(self, job_id: str, reason: str) -> Job | None:
        """End a job unless it has ended; its worker drops it at the next step. None for an unknown id."""
        before = await self.get(job_id)
        if before is None or before.state.final:
            return before
        job = await to_thread.run_sync(self.store.cancel, job_id)
        if job is not None and job.state is JobState.CANCELLED:
            self.metrics.jobs.labels("cancelled", reason).inc()
            event = Event(type="cancelled", job=job_id)
            self.bus.publish(event)
            self.watch.take(event)
        return job

    async def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return await to_thread.run_sync(self.store.get, job_id)

    async def read(self, result: Result) -> bytes:
        """The bytes of a finished picture.

        Raises:
            UnknownJob: they have been deleted.
        """
        try:
            return await to_thread.run_sync(self.artifacts.open, result.content_sha256)
        except KeyError:
            raise UnknownJob(f"picture {result.content_sha256} has been deleted", code="result_gone") from None


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _idempotency_key(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_KEY_CHARS:
        raise InvalidRequest(
            f"Idempotency-Key has {len(idempotency_key)} characters, between 1 and {MAX_KEY_CHARS} are allowed",
            param="Idempotency-Key",
        )
    return idempotency_key


UsesServices = Annotated[Services, Depends(_services)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def name_job(request: Request, job_id: str) -> None:
    """Put the job's id into a header of the answer, whatever the answer will be, and into the access log."""
    request.state.answer_headers["x-darkroom-job"] = job_id
