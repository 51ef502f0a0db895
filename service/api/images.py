"""``POST /v1/images/generations``: OpenAI's synchronous call, waiting for a job like any other."""

from __future__ import annotations

import asyncio
import base64

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from service.api.context import IdempotencyKey, Services, UsesServices, name_job
from service.api.resolve import resolve
from service.api.schema import IGNORED_FIELDS, ImagesAnswer, ImagesRequest, Picture
from service.errors import GenerationFailed, InvalidRequest, StillRunning, Unavailable
from service.jobs.job import Job, JobState, Priority

router = APIRouter(tags=["images"])

CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it tells in log and metrics that the client went away."""


@router.post("/v1/images/generations", response_model=ImagesAnswer)
async def generate_images(
    body: ImagesRequest, request: Request, services: UsesServices, key: IdempotencyKey
) -> ImagesAnswer | Response:
    """Make pictures from a prompt and answer with their bytes in base64."""
    _refuse_unsupported(body)
    ignored = [name for name in IGNORED_FIELDS if getattr(body, name) is not None]
    if ignored:
        request.state.answer_headers["x-darkroom-ignored"] = ", ".join(ignored)
    priority = Priority(body.priority or Priority.INTERACTIVE)  # somebody waits
    job = await services.submit(resolve(body, services.models, key), key, priority, body.deadline_s)
    name_job(request, job.id)
    ended = await _wait_while_connected(request, services, job.id)
    if ended is None:
        # With a key the client can come back for the result; without one nobody will ever see it.
        if key is None:
            await services.cancel(job.id, reason="disconnect")
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    job = _completed(ended, services)
    contents = [await services.read(result) for result in job.results]
    # In a thread: encoding ten pictures of a megapixel takes tens of milliseconds.
    return await to_thread.run_sync(_answer, job, contents)


def _refuse_unsupported(body: ImagesRequest) -> None:
    if body.response_format == "url":
        raise InvalidRequest(
            "response_format 'url' is not supported yet; use 'b64_json', or POST /v1/jobs for pictures with an address",
            param="response_format",
        )
    if body.stream:
        raise InvalidRequest("stream is not supported yet; POST /v1/jobs reports progress", param="stream")
    if body.background == "transparent":
        raise InvalidRequest("background 'transparent' is not supported; use 'opaque' or 'auto'", param="background")


async def _wait_while_connected(request: Request, services: Services, job_id: str) -> Job | None:
    """The job when it ended or its time is up; None when the client went away first."""
    ended = asyncio.create_task(services.watch.wait(job_id, services.settings.sync_timeout_s))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None
    finally:
        ended.cancel()
        gone.cancel()
        await asyncio.gather(ended, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    # The body has been read, so the next message but empty ones is the disconnect.
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _completed(job: Job, services: Services) -> Job:
    """The job, if it has pictures to show."""
    if not job.state.final:
        raise StillRunning(
            f"not finished after {services.settings.sync_timeout_s:g} s; the job goes on as /v1/jobs/{job.id}"
        )
    if job.state is JobState.COMPLETED:
        return job
    if job.state is JobState.EXPIRED:
        waited_s = round((job.deadline_at or job.created_at) - job.created_at, 3)  # the sum of two floats was rounded
        raise Unavailable(
            f"job {job.id} expired: no worker was free to begin it within deadline_s = {waited_s:g}", code="expired"
        )
    if job.error is not None:
        raise GenerationFailed(f"job {job.id}: {job.error.message}", code=job.error.code)
    raise GenerationFailed(f"job {job.id} was {job.state}", code=str(job.state))


def _answer(job: Job, contents: list[bytes]) -> ImagesAnswer:
    pictures = [
        Picture(
            b64_json=base64.b64encode(content).decode(),
            seed=result.seed,
            content_sha256=result.content_sha256,
            numerics_id=result.numerics_id,
            job=job.id,
        )
        for result, content in zip(job.results, contents, strict=True)
    ]
    return ImagesAnswer(
        created=int(job.finished_at or job.created_at),
        output_format=job.request.output_format,
        size=f"{job.request.width}x{job.request.height}",
        data=pictures,
    )
