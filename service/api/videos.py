"""``/v1/videos``: OpenAI's asynchronous calls for clips, over the same jobs as everything else."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Query, Request, Response

from service.api.body import described, idempotency_key, read_body
from service.api.clips import Length
from service.api.context import Services, UsesServices, name_job
from service.api.files import answer_file
from service.api.routing import make_router
from service.api.schema import IGNORED_FIELDS, VideosRequest
from service.api.views import Progress, Video, VideoDeleted, VideoError, VideoList, ends_of
from service.errors import InvalidRequest, UnknownJob
from service.jobs.job import ImageToVideo, Job, JobState, Priority, Task

router = make_router("/v1/videos", "videos")

TASK: Task = "image-to-video"
MAX_PAGE = 100
POLL_MS = (250, 5000)
"""When a client that polls should come back: a tenth of what is left, within these."""

STATUS: dict[JobState, Literal["queued", "in_progress", "completed", "failed"]] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
    JobState.EXPIRED: "failed",
}


@router.post("", openapi_extra=described(VideosRequest))
async def create_video(request: Request, services: UsesServices) -> Video:
    """Begin a clip from a picture. ``seconds`` of the answer is what is made."""
    body, key = await read_body(request, VideosRequest), idempotency_key(request)
    ignored = [name for name in IGNORED_FIELDS if getattr(body, name, None) is not None]
    if ignored:
        request.state.answer_headers["x-darkroom-ignored"] = ", ".join(ignored)
    job = await services.accept(body, key, Priority.STANDARD)
    name_job(request, job.id)
    return _view(job, services)


@router.get("")
async def list_videos(
    services: UsesServices,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """A page of videos, by when they were begun."""
    if after is not None:
        await _find(after, services, param="after")

    def find() -> list[Job]:
        return services.store.list(limit + 1, after, tasks=[TASK], oldest_first=order == "asc")

    jobs = await to_thread.run_sync(find)
    page = [_view(job, services) for job in jobs[:limit]]
    first, last = ends_of(video.id for video in page)
    return VideoList(data=page, first_id=first, last_id=last, has_more=len(jobs) > limit)


@router.get("/{video_id}")
async def get_video(video_id: str, request: Request, services: UsesServices) -> Video:
    """A video's status, with its progress in percent while it is made."""
    job = await _find(video_id, services)
    if not job.state.final:
        # Clients keep to what their first look was told.
        eta_s = (await services.outlook(job)).eta_s
        poll_ms = POLL_MS[0] if eta_s is None else min(max(int(eta_s * 100), POLL_MS[0]), POLL_MS[1])
        request.state.answer_headers["openai-poll-after-ms"] = str(poll_ms)
    return _view(job, services)


@router.get("/{video_id}/content", response_class=Response)
async def get_content(
    video_id: str,
    request: Request,
    services: UsesServices,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> Response:
    """The clip, its first picture in small, or a sheet of its pictures."""
    job = await _find(video_id, services)
    if job.state is not JobState.COMPLETED:
        raise UnknownJob(f"video {video_id} is {STATUS[job.state]} and has no content", code="result_not_found")
    return await answer_file(services, request, job.results[0], None if variant == "video" else variant)


@router.delete("/{video_id}")
async def delete_video(video_id: str, services: UsesServices) -> VideoDeleted:
    """Delete a video; one that is being made is stopped."""
    await _find(video_id, services)
    await services.delete(video_id)
    return VideoDeleted(id=video_id)


@router.post("/{video_id}/remix", status_code=400)
async def remix_video(video_id: str) -> Response:
    """Not offered: these models take no text and no clip."""
    del video_id
    raise _unsupported("remix")


@router.post("/edits", status_code=400)
async def edit_video() -> Response:
    """Not offered: these models take no clip."""
    raise _unsupported("edits")


@router.post("/extensions", status_code=400)
async def extend_video() -> Response:
    """Not offered: a longer clip is asked for by ``seconds`` when it is made."""
    raise _unsupported("extensions")


def _unsupported(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what} of videos is not supported; POST /v1/videos with the picture to begin from", code="not_supported"
    )


async def _find(video_id: str, services: Services, param: str | None = None) -> Job:
    job = await services.reader.get(video_id)
    if job is None or not isinstance(job.request, ImageToVideo):
        message = f"video {video_id[:80]!r} does not exist"
        raise UnknownJob(message, code="video_not_found") if param is None else InvalidRequest(message, param=param)
    return job


def _view(job: Job, services: Services) -> Video:
    return video_of(job, services.watch.progress(job.id), services.settings.retention_s)


def video_of(job: Job, progress: Progress | None, retention_s: float) -> Video:
    """OpenAI's view of a job that makes a clip."""
    request = job.request
    assert isinstance(request, ImageToVideo)
    length = Length(request.frames, request.segments, request.fps)
    done = job.state is JobState.COMPLETED
    result = job.results[0] if job.results else None
    expires_at = None
    if job.finished_at is not None and retention_s:
        expires_at = int(job.finished_at + retention_s)
    return Video(
        id=job.id,
        model=request.model,
        status=STATUS[job.state],
        progress=100 if done else _percent(job, progress),
        created_at=int(job.created_at),
        completed_at=int(job.finished_at or time.time()) if done else None,
        expires_at=expires_at,
        prompt=request.prompt,
        size=f"{request.width}x{request.height}",
        seconds=f"{length.seconds:.2f}".rstrip("0").rstrip("."),
        fps=request.fps,
        frames=length.total_frames,
        seed=request.seed,
        error=_error(job),
        content_sha256=None if result is None else result.content_sha256,
        numerics_id=None if result is None else result.numerics_id,
    )


def _percent(job: Job, progress: Progress | None) -> int:
    """Below 100 until all is done: after the last step the clip is decoded."""
    if progress is None or job.state is not JobState.RUNNING:
        return 0
    return min(99, 100 * progress.step // max(progress.steps, 1))


def _error(job: Job) -> VideoError | None:
    if job.error is not None:
        return VideoError(code=job.error.code, message=job.error.message)
    reasons = {
        JobState.CANCELLED: "the job was cancelled",
        JobState.EXPIRED: "no worker was free to begin the job before its deadline",
    }
    return VideoError(code=str(job.state), message=reasons[job.state]) if job.state in reasons else None
