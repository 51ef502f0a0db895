"""``/v1/jobs``: the native, asynchronous way to the same pictures."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from service.api.context import IdempotencyKey, Services, UsesServices, name_job
from service.api.resolve import resolve
from service.api.schema import JobList, JobRequest, JobView
from service.errors import InvalidRequest, UnknownJob
from service.jobs.job import Job, JobState, Priority

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_PAGE = 100


@router.post("", status_code=202)
async def submit_job(
    body: JobRequest, request: Request, response: Response, services: UsesServices, key: IdempotencyKey
) -> JobView:
    """Accept a job; its state and its results are at the address in ``Location``."""
    priority = Priority(body.priority or Priority.STANDARD)
    job = await services.submit(resolve(body, services.models, key), key, priority, body.deadline_s)
    name_job(request, job.id)
    response.headers["location"] = f"/v1/jobs/{job.id}"
    return _view(job, services)


@router.get("")
async def list_jobs(
    services: UsesServices,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: str | None = None,
    state: JobState | None = None,
) -> JobList:
    """A page of jobs, newest first."""
    if after is not None and await services.get(after) is None:
        raise InvalidRequest(f"after names job {after[:80]!r}, which does not exist", param="after")
    jobs = await to_thread.run_sync(services.store.list, limit + 1, after, state)
    page = [_view(job, services) for job in jobs[:limit]]
    return JobList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(jobs) > limit,
    )


@router.get("/{job_id}")
async def get_job(job_id: str, services: UsesServices) -> JobView:
    """A job's state, and its progress while it runs."""
    return _view(await _find(job_id, services), services)


@router.delete("/{job_id}")
async def cancel_job(job_id: str, services: UsesServices) -> JobView:
    """Cancel a job. One that has ended stays as it is."""
    job = await services.cancel(job_id, reason="client")
    return _view(_known(job, job_id), services)


@router.get("/{job_id}/results/{index}", response_class=Response)
async def get_result(job_id: str, index: Annotated[int, Path(ge=0)], services: UsesServices) -> Response:
    """The bytes of one finished picture."""
    job = await _find(job_id, services)
    if job.state is not JobState.COMPLETED:
        raise UnknownJob(f"job {job_id} is {job.state} and has no results", code="result_not_found")
    if index >= len(job.results):
        raise UnknownJob(f"job {job_id} has {len(job.results)} results, counted from 0", code="result_not_found")
    result = job.results[index]
    content = await services.read(result)
    # The name is the hash of the bytes, and a finished job never changes.
    headers = {"etag": f'"{result.content_sha256}"', "cache-control": "private, max-age=31536000, immutable"}
    return Response(content, media_type=result.media_type, headers=headers)


def _view(job: Job, services: Services) -> JobView:
    return JobView.of(job, services.watch.progress(job.id))


async def _find(job_id: str, services: Services) -> Job:
    return _known(await services.get(job_id), job_id)


def _known(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise UnknownJob(f"job {job_id[:80]!r} does not exist")
    return job
