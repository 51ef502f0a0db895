"""``/v1/images``: OpenAI's synchronous calls, waiting for a job like any other, and its streams of partial pictures."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import aclosing

from anyio import CancelScope, to_thread
from fastapi import Request, Response

from service.api import sse
from service.api.body import described, idempotency_key, read_body
from service.api.context import Services, UsesServices, name_job, unless_disconnected
from service.api.errors import CLIENT_CLOSED_REQUEST, error_body
from service.api.events import Heard
from service.api.routing import make_router
from service.api.schema import IGNORED_FIELDS, EditsRequest, ImagesRequest
from service.api.views import ImagesAnswer, Picture, PictureEvent, Usage
from service.errors import DarkroomError, DeadlineMissed, GenerationFailed, InvalidRequest, StillRunning
from service.jobs.job import Job, JobState, PictureRequest, Priority, Result

router = make_router("/v1/images", "images")

REFUSED_BY_WORKERS = ("adapter_unusable", "request_unsupported")
"""Codes of jobs whose request was at fault, as only a worker, which has read the weights, can know."""


@router.post("/generations", response_model=ImagesAnswer, openapi_extra=described(ImagesRequest, forms=False))
async def generate_images(request: Request, services: UsesServices) -> Response:
    """Make pictures from a prompt and answer with them, or stream how they come into being."""
    return await _serve(await read_body(request, ImagesRequest, forms=False), "image_generation", request, services)


@router.post("/edits", response_model=ImagesAnswer, openapi_extra=described(EditsRequest))
async def edit_images(request: Request, services: UsesServices) -> Response:
    """Change a picture: as a whole, by ``strength``, or where a mask says so."""
    return await _serve(await read_body(request, EditsRequest), "image_edit", request, services)


async def _serve(body: ImagesRequest, family: str, request: Request, services: Services) -> Response:
    key = idempotency_key(request)
    if body.background == "transparent":
        raise InvalidRequest("background 'transparent' is not supported; use 'opaque' or 'auto'", param="background")
    if body.stream and body.response_format == "url":
        raise InvalidRequest("response_format 'url' cannot be streamed; use 'b64_json'", param="response_format")
    ignored = [name for name in IGNORED_FIELDS if getattr(body, name) is not None]
    if not body.stream and body.partial_images is not None:
        ignored.append("partial_images")
        body.partial_images = None
    if ignored:
        request.state.answer_headers["x-darkroom-ignored"] = ", ".join(ignored)
    job = await services.accept(body, key, Priority.INTERACTIVE)  # somebody waits
    name_job(request, job.id)
    if body.stream:
        return sse.stream(_stream(services, job, family, keep=key is not None))
    waiting = asyncio.create_task(services.watch.wait(job.id, services.settings.sync_timeout_s))
    ended = await unless_disconnected(request, waiting)
    if ended is None:
        # With a key the client can come back for the result; without one nobody will ever see it.
        if key is None:
            await services.cancel(job.id, reason="disconnect")
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if not ended.state.final:
        raise StillRunning(
            f"not finished after {services.settings.sync_timeout_s:g} s; the job goes on as /v1/jobs/{job.id}"
        )
    _check_completed(ended)
    if body.response_format == "url":
        base = str(request.base_url).rstrip("/")
        urls = [f"{base}/v1/jobs/{job.id}/results/{index}" for index in range(len(ended.results))]
        return _answer(
            ended, [_picture(ended, result, url=url) for result, url in zip(ended.results, urls, strict=True)]
        )
    contents = [await services.read(result.content_sha256) for result in ended.results]
    # In a thread: encoding ten pictures of a megapixel takes tens of milliseconds.
    return await to_thread.run_sync(_with_contents, ended, contents)


async def _stream(services: Services, job: Job, family: str, keep: bool) -> AsyncIterator[bytes]:
    """The events of OpenAI's contract: partial pictures while the job runs, then each finished one."""
    ended = False
    try:
        async with aclosing(services.watch.follow(job.id)) as updates:
            async for update in updates:
                if update is None:
                    yield sse.COMMENT
                elif isinstance(update, Heard):
                    if update.event.type == "preview":
                        yield await _partial(services, job, family, update)
                elif update.state.final:
                    ended = True
                    _check_completed(update)
                    for index, result in enumerate(update.results):
                        yield await _completed(services, update, family, index, result)
    except DarkroomError as error:
        # The answer has begun: this is how OpenAI's client learns of it, and raises.
        yield sse.event("error", error_body(error))
    finally:
        if not ended and not keep:
            with CancelScope(shield=True):  # the client has gone, and this with it
                await services.cancel(job.id, reason="disconnect")


async def _partial(services: Services, job: Job, family: str, heard: Heard) -> bytes:
    told = heard.event
    content = await services.read(told.preview or "")
    return _event(f"{family}.partial_image", job, content, told.index or 0, part=told.part, step=told.step)


async def _completed(services: Services, job: Job, family: str, index: int, result: Result) -> bytes:
    content = await services.read(result.content_sha256)
    return _event(f"{family}.completed", job, content, index, result=result)


def _event(
    name: str,
    job: Job,
    content: bytes,
    index: int,
    *,
    part: int | None = None,
    step: int | None = None,
    result: Result | None = None,
) -> bytes:
    picture = PictureEvent(
        type=name,
        b64_json=base64.b64encode(content).decode(),
        created_at=int(job.finished_at or job.created_at),
        size=_size(job),
        output_format=job.request.output_format,
        index=index,
        partial_image_index=part,
        step=step,
        usage=None if result is None else Usage(),
        seed=None if result is None else result.seed,
        content_sha256=None if result is None else result.content_sha256,
        numerics_id=None if result is None else result.numerics_id,
        job=job.id,
    )
    return sse.event(name, picture.model_dump_json(exclude_none=True))


def _check_completed(job: Job) -> None:
    """Raise what became of a job that has ended, unless it has pictures to show."""
    if job.state is JobState.COMPLETED:
        return
    if job.state is JobState.EXPIRED:
        waited_s = round((job.deadline_at or job.created_at) - job.created_at, 3)  # the sum of two floats was rounded
        raise DeadlineMissed(f"job {job.id} expired: no worker was free to begin it within deadline_s = {waited_s:g}")
    if job.error is not None and job.error.code in REFUSED_BY_WORKERS:
        raise InvalidRequest(f"job {job.id}: {job.error.message}", code=job.error.code)
    if job.error is not None:
        raise GenerationFailed(f"job {job.id}: {job.error.message}", code=job.error.code)
    raise GenerationFailed(f"job {job.id} was {job.state}", code=str(job.state))


def _with_contents(job: Job, contents: list[bytes]) -> Response:
    encoded = (base64.b64encode(content).decode() for content in contents)
    return _answer(job, [_picture(job, result, b64=text) for result, text in zip(job.results, encoded, strict=True)])


def _picture(job: Job, result: Result, b64: str | None = None, url: str | None = None) -> Picture:
    return Picture(
        b64_json=b64,
        url=url,
        seed=result.seed,
        content_sha256=result.content_sha256,
        numerics_id=result.numerics_id,
        job=job.id,
    )


def _answer(job: Job, pictures: list[Picture]) -> Response:
    assert isinstance(job.request, PictureRequest)
    answer = ImagesAnswer(
        created=int(job.finished_at or job.created_at),
        output_format=job.request.output_format,
        size=_size(job),
        data=pictures,
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _size(job: Job) -> str:
    return f"{job.request.width}x{job.request.height}"
