"""``/v1/jobs``: the native, asynchronous way to every task with every knob."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from anyio import to_thread
from fastapi import Header, Path, Query, Request, Response

from service.api import sse
from service.api.body import described, idempotency_key, read_body
from service.api.context import Services, UsesServices, known, name_job
from service.api.errors import error_body
from service.api.events import Heard
from service.api.files import answer_file
from service.api.forecast import Outlook
from service.api.routing import DirectRoute, make_router
from service.api.schema import JobRequest
from service.api.views import JobList, JobView, PreviewEvent, ProgressEvent, ends_of
from service.errors import DarkroomError, InvalidRequest, UnknownJob
from service.jobs.bus import Event
from service.jobs.job import Job, JobState, Priority, Task

router = make_router("/v1/jobs", "jobs")
direct = make_router("/v1/jobs", "jobs", DirectRoute)
"""Submissions and looks, which are most of all requests."""

MAX_PAGE = 100
ENDED = "end"
"""The number of a stream's last event. A browser comes back with it, and has to be told that there is no more."""


@direct.post("", status_code=202, response_model=JobView, openapi_extra=described(JobRequest))
async def submit_job(request: Request, services: UsesServices) -> Response:
    """Accept a job; its state and its results are at the address in ``Location``."""
    body, key = await read_body(request, JobRequest), idempotency_key(request)
    job = await services.accept(body, key, Priority.STANDARD)
    name_job(request, job.id)
    return _answer(job, await services.outlook(job), services, 202, {"location": f"/v1/jobs/{job.id}"})


@router.get("")
async def list_jobs(
    services: UsesServices,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: str | None = None,
    state: JobState | None = None,
    task: Task | None = None,
) -> JobList:
    """A page of jobs, newest first. They are without what a look at the queue would say of each."""
    if after is not None and await services.reader.get(after) is None:
        raise InvalidRequest(f"after names job {after[:80]!r}, which does not exist", param="after")

    def find() -> list[Job]:
        return services.store.list(limit + 1, after, state, tasks=None if task is None else [task])

    jobs = await to_thread.run_sync(find)
    page = [JobView.of(job, services.watch.progress(job.id), None, None) for job in jobs[:limit]]
    first, last = ends_of(job.id for job in page)
    return JobList(data=page, first_id=first, last_id=last, has_more=len(jobs) > limit)


@direct.get("/{job_id}", response_model=JobView)
async def get_job(request: Request, job_id: str, services: UsesServices) -> Response:
    """A job's state, its progress while it runs, and its place in the queue before."""
    del request  # which every direct route is given
    return _answer(*await services.look(job_id), services)


@router.delete("/{job_id}", response_model=JobView)
async def cancel_job(job_id: str, services: UsesServices) -> Response:
    """Cancel a job. One that has ended stays as it is."""
    job = known(await services.cancel(job_id, reason="client"), job_id)
    return _answer(job, await services.outlook(job), services)


@router.get("/{job_id}/results/{index}", response_class=Response)
async def get_result(
    job_id: str,
    index: Annotated[int, Path(ge=0)],
    request: Request,
    services: UsesServices,
    variant: str | None = None,
) -> Response:
    """The bytes of one finished picture or clip, or of a variant of it."""
    job = await services.find(job_id)
    if job.state is not JobState.COMPLETED:
        raise UnknownJob(f"job {job_id} is {job.state} and has no results", code="result_not_found")
    if index >= len(job.results):
        raise UnknownJob(f"job {job_id} has {len(job.results)} results, counted from 0", code="result_not_found")
    return await answer_file(services, request, job.results[index], variant)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "The stream had ended."}},
)
async def get_events(
    job_id: str, services: UsesServices, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Server-sent events: ``state`` (a job as by ``GET``) at once and with each change, ``progress``, ``preview``."""
    job = await services.find(job_id)
    if last_event_id == ENDED and job.state.final:
        return Response(status_code=204)
    return sse.stream(_events(job, services, last_event_id))


async def _events(job: Job, services: Services, after: str | None) -> AsyncIterator[bytes]:
    try:
        async with aclosing(services.watch.follow(job.id, after)) as updates:
            async for update in updates:
                if update is None:
                    yield sse.COMMENT
                elif isinstance(update, Job):
                    job = update
                    view = _view(job, await services.outlook(job), services)
                    yield sse.event("state", view.model_dump_json(), ENDED if job.state.final else None)
                elif update.event.type == "progress":
                    yield await _progress(job, update.event, services)
                elif update.event.type == "preview":
                    yield await _preview(job, update, services)
    except DarkroomError as error:  # the answer has begun
        yield sse.event("error", error_body(error))


async def _progress(job: Job, told: Event, services: Services) -> bytes:
    eta_s = (await services.outlook(job)).eta_s
    progress = ProgressEvent(step=told.step or 0, steps=told.steps or 0, eta_s=eta_s)
    return sse.event("progress", progress.model_dump_json())


async def _preview(job: Job, heard: Heard, services: Services) -> bytes:
    told = heard.event
    content = await services.read(told.preview or "")
    preview = PreviewEvent(
        index=told.index or 0,
        part=told.part or 0,
        step=told.step or 0,
        steps=told.steps or 0,
        b64_json=base64.b64encode(content).decode(),
        media_type=f"image/{job.request.output_format}",
    )
    return sse.event("preview", preview.model_dump_json(), services.watch.name_of(heard))


def _view(job: Job, outlook: Outlook, services: Services) -> JobView:
    return JobView.of(job, services.watch.progress(job.id), outlook.queue_position, outlook.eta_s)


def _answer(
    job: Job, outlook: Outlook, services: Services, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    # Written by pydantic: the framework would check and copy the view again, for half of a request's cost.
    content = _view(job, outlook, services).model_dump_json()
    return Response(content, status, headers, media_type="application/json")
