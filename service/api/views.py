"""What answers hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel

from models.spec.model import Task as SystemTask
from service.jobs.job import Job, JobError, JobState, Priority, Request, Result, Task


class Usage(BaseModel):
    """OpenAI's clients expect it. Nothing is counted in tokens here."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}


class Picture(BaseModel):
    """One picture of a synchronous answer: OpenAI's ``b64_json`` or ``url``, and what is needed to make it again."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    content_sha256: str
    numerics_id: str
    job: str


class ImagesAnswer(BaseModel):
    """Answer of ``POST /v1/images/generations`` and ``POST /v1/images/edits``."""

    created: int
    output_format: str
    size: str
    background: Literal["opaque"] = "opaque"
    data: list[Picture]
    usage: Usage = Usage()


class PictureEvent(BaseModel):
    """One event of a stream of pictures: a partial one, or with ``usage`` a finished one."""

    type: str
    b64_json: str
    created_at: int
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: str
    index: int
    """Of the picture, where n are made."""
    partial_image_index: int | None = None
    step: int | None = None
    """Steps that a partial picture has behind it."""
    usage: Usage | None = None
    seed: int | None = None
    content_sha256: str | None = None
    numerics_id: str | None = None
    job: str


class Progress(BaseModel):
    """How far a running job is."""

    step: int
    steps: int


class VariantView(BaseModel):
    """Another file made of the same result, to be fetched at ``url``."""

    name: str
    url: str
    content_sha256: str
    media_type: str


class ResultView(BaseModel):
    """One finished picture or clip, to be fetched at ``url``."""

    index: int
    url: str
    content_sha256: str
    media_type: str
    seed: int
    numerics_id: str
    variants: list[VariantView]

    @classmethod
    def of(cls, job_id: str, index: int, result: Result) -> ResultView:
        """The view of result number ``index`` of a job."""
        url = f"/v1/jobs/{job_id}/results/{index}"
        return cls(
            index=index,
            url=url,
            content_sha256=result.content_sha256,
            media_type=result.media_type,
            seed=result.seed,
            numerics_id=result.numerics_id,
            variants=[
                VariantView(url=f"{url}?variant={variant.name}", **variant.model_dump()) for variant in result.variants
            ],
        )


class JobView(BaseModel):
    """A job as clients see it."""

    id: str
    object: Literal["job"] = "job"
    state: JobState
    priority: Priority
    created_at: float
    deadline_at: float | None
    started_at: float | None
    finished_at: float | None
    attempts: int
    progress: Progress | None
    """Of a running job, as soon as its worker has reported any."""
    queue_position: int | None
    """Of a queued job: how many come before it."""
    eta_s: float | None
    """Seconds until it ends, where something is known of it."""
    request: Request
    results: list[ResultView]
    error: JobError | None

    @classmethod
    def of(cls, job: Job, progress: Progress | None, queue_position: int | None, eta_s: float | None) -> JobView:
        """The view of a job of the store."""
        return cls(
            id=job.id,
            state=job.state,
            priority=job.priority,
            created_at=job.created_at,
            deadline_at=job.deadline_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            attempts=job.attempts,
            progress=progress if job.state is JobState.RUNNING else None,
            queue_position=queue_position,
            eta_s=eta_s,
            request=job.request,
            results=[ResultView.of(job.id, index, result) for index, result in enumerate(job.results)],
            error=job.error,
        )


class ProgressEvent(Progress):
    """Data of a job's ``progress`` event."""

    eta_s: float | None


class PreviewEvent(BaseModel):
    """Data of a job's ``preview`` event: how a picture looks by now."""

    index: int
    part: int
    """Which of those that the request asked for, from 0."""
    step: int
    steps: int
    b64_json: str
    media_type: str


class JobList(BaseModel):
    """A page of jobs; the next one starts after ``last_id``."""

    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoError(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class Video(BaseModel):
    """OpenAI's description of a video, and what is needed to make it again."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    """Percent."""
    created_at: int
    completed_at: int | None
    expires_at: int | None
    """When it will have been deleted."""
    prompt: str
    size: str
    seconds: str
    """What is made, which may differ a little from what was asked for."""
    fps: int
    frames: int
    seed: int
    remixed_from_video_id: None = None
    error: VideoError | None
    content_sha256: str | None
    numerics_id: str | None


class VideoList(BaseModel):
    """A page of videos; the next one starts after ``last_id``."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """Answer of ``DELETE /v1/videos/{id}``."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelView(BaseModel):
    """OpenAI's description of a model, and what this server lets a request choose."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "darkroom"
    task: SystemTask
    capabilities: list[Task]
    state: Literal["loaded", "installed"]
    """Whether this machine's worker has it in memory; a request for one that is only installed waits until it is."""
    license: str | None
    """As its card names it."""
    sizes: list[str]
    """The native one first."""
    frames: int | None
    """Of one pass, for clips."""
    default_steps: int
    max_steps: int
    default_guidance: float
    max_guidance: float
    default_scheduler: str
    schedulers: list[str]
    decoders: list[Literal["full", "fast"]]
    loras: list[str]
    """Adapters that a request may name."""


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``; the first model is the one a request gets that names none."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class Health(BaseModel):
    """Answer of the health checks when all is well."""

    status: Literal["live", "ready"]
    models: list[str] = []


class ErrorBody(BaseModel):
    """The inside of the error envelope."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorEnvelope(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorBody


def ends_of(ids: Iterable[str]) -> tuple[str | None, str | None]:
    """First and last of a page, None for an empty one."""
    listed = list(ids)
    return (listed[0], listed[-1]) if listed else (None, None)
