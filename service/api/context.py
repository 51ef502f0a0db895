"""What the routes share, and the few things more than one of them does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request

from models.spec.model import ModelSpec
from service.api.admission import Line
from service.api.events import JobWatch
from service.api.forecast import Forecast, Outlook
from service.api.inputs import keep_inputs
from service.api.reading import Reader
from service.api.resolve import resolve
from service.api.schema import Generation
from service.errors import DeadlineUnmeetable, QueueFull, UnknownJob
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import Job, JobState, Priority
from service.jobs.job import Request as JobSpec
from service.jobs.store import JobStore
from service.metrics import ApiMetrics
from service.settings import Settings, installed_adapters

DECODERS = 2
"""Pictures that are decoded at once: each may take some 300 MB."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Services:
    """Everything a route may touch. Made once by ``create_app``."""

    settings: Settings
    store: JobStore
    reader: Reader
    bus: Bus
    artifacts: ArtifactStore
    models: Mapping[str, ModelSpec]
    metrics: ApiMetrics
    watch: JobWatch
    line: Line
    forecast: Forecast
    decoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(DECODERS))

    # What writes to the store goes to a thread, for it can block: it waits while another process writes, and for the
    # disk, and would hold up every open request. The detour costs twice what a write does, so a submission, of which
    # there are many, is first tried without waiting.

    async def accept(self, body: Generation, idempotency_key: str | None, priority: Priority) -> Job:
        """Make a body into a job and submit it.

        Args:
            body: what was sent.
            idempotency_key: names this submission.
            priority: the class of a request that names none.

        Raises:
            UnknownModel, InvalidRequest: it cannot be made.
            QueueFull, DeadlineUnmeetable: not now.
        """
        # Whatever is refused anyway is refused before its picture is decoded.
        adapters = frozenset(installed_adapters(self.settings)) if body.loras else frozenset()
        make = partial(resolve, body, self.models, idempotency_key, adapters)
        if body.files[0] is None:
            request = make()
        else:
            keep = partial(keep_inputs, self.artifacts)
            request = await to_thread.run_sync(partial(make, keep=keep), limiter=self.decoders)
        if not self.settings.metadata:
            request = request.model_copy(update={"metadata": False})
        return await self._submit(
            request, idempotency_key, Priority(body.priority or priority), body.deadline_s, body.seed is None
        )

    async def _submit(
        self, request: JobSpec, key: str | None, priority: Priority, deadline_s: float | None, any_seed: bool
    ) -> Job:
        """Accept a job and ring the workers' bell."""
        seconds = self.forecast.seconds_per_job(request.model)
        if len(self.line) or deadline_s is not None:
            stats = await to_thread.run_sync(self.store.stats)
            wait_s = self.forecast.wait_s(stats, request.model, priority)
            if deadline_s is not None and wait_s is not None and wait_s > deadline_s:
                self.metrics.refused.labels("deadline").inc()
                raise DeadlineUnmeetable(deadline_s, wait_s)
            # With a key the job may have been accepted before, which only the store knows.
            come_back_s = None if key else self.line.ask(_client(request, any_seed), stats.queued, seconds or 1.0)
            if come_back_s is not None:
                self.metrics.refused.labels("queue_full").inc()
                raise QueueFull("the places that come free in the queue are promised to others", come_back_s)

        def submit(wait: bool = True) -> Job:
            accepted = self.store.submit(request, key, priority=priority, deadline_s=deadline_s, wait=wait)
            self.bus.publish(Event(type="submitted", job=accepted.id))
            return accepted

        try:
            try:
                return submit(wait=False)
            except BlockingIOError:
                return await to_thread.run_sync(submit)
        except QueueFull as error:
            self.metrics.refused.labels("queue_full").inc()
            come_back_s = self.line.promise(_client(request, any_seed), self.settings.max_queued, seconds or 1.0)
            raise QueueFull(error.message, come_back_s) from None

    async def cancel(self, job_id: str, reason: str) -> Job | None:
        """End a job unless it has ended; its worker drops it at the next step. None for an unknown id."""
        before = await self.reader.get(job_id)
        if before is None or before.state.final:
            return before
        job = await to_thread.run_sync(self.store.cancel, job_id)
        if job is not None and job.state is JobState.CANCELLED:
            self._tell_cancelled(job_id, reason)
        return job

    async def delete(self, job_id: str) -> Job | None:
        """Forget a job and let go of its files; one that has not ended is cancelled first. None for an unknown id."""
        before = await self.reader.get(job_id)
        job = await to_thread.run_sync(self.store.delete, job_id)
        if before is not None and not before.state.final and job is not None and job.state is JobState.CANCELLED:
            self._tell_cancelled(job_id, "client")
        return job

    async def find(self, job_id: str) -> Job:
        """The job.

        Raises:
            UnknownJob: there is none.
        """
        return known(await self.reader.get(job_id), job_id)

    async def look(self, job_id: str) -> tuple[Job, Outlook]:
        """The job, and what is known of its future.

        Raises:
            UnknownJob: there is none.
        """
        found, position = await self.reader.look(job_id)
        job = known(found, job_id)
        return job, self.forecast.of(job, position, self.watch.progress(job_id))

    async def outlook(self, job: Job) -> Outlook:
        """What is known of a job's future."""
        return self.forecast.of(job, await self.reader.position(job), self.watch.progress(job.id))

    async def read(self, artifact: str) -> bytes:
        """The bytes of a finished file.

        Raises:
            UnknownJob: they have been deleted.
        """
        try:
            return await to_thread.run_sync(self.artifacts.open, artifact)
        except KeyError:
            raise UnknownJob(f"file {artifact} has been deleted", code="result_gone") from None

    def _tell_cancelled(self, job_id: str, reason: str) -> None:
        self.metrics.jobs.labels("cancelled", reason).inc()
        event = Event(type="cancelled", job=job_id)
        self.bus.publish(event)
        self.watch.take(event)


def known(job: Job | None, job_id: str) -> Job:
    """The job, if there is one.

    Raises:
        UnknownJob: there is none.
    """
    if job is None:
        raise UnknownJob(f"job {job_id[:80]!r} does not exist")
    return job


def name_job(request: Request, job_id: str) -> None:
    """Put the job's id into a header of the answer, whatever the answer will be, and into the access log."""
    request.state.answer_headers["x-darkroom-job"] = job_id


async def unless_disconnected(request: Request, work: asyncio.Task[Answer]) -> Answer | None:
    """What ``work`` comes to; None when the client went away first, and then it is cancelled."""
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    # The body has been read, so the next message but empty ones is the disconnect.
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client(request: JobSpec, any_seed: bool) -> str:
    """Who asks the same again is the one who was told when to come back."""
    content = request.model_dump_json(exclude={"seed"} if any_seed else set())
    return hashlib.sha256(content.encode()).hexdigest()


# A coroutine, for the framework runs plain functions in threads.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


UsesServices = Annotated[Services, Depends(_services)]
