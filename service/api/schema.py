"""The wire contract: what a request may hold and what an answer holds. Limits that depend on a model are in resolve."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from service.jobs.job import Job, JobError, JobState, Priority, TextToImage

MAX_PROMPT_CHARS = 4000
MAX_SEED = 2**63 - 1
MAX_PICTURES = 10
MAX_DEADLINE_S = 7 * 86400

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]

IGNORED_FIELDS = (
    "user",
    "quality",
    "moderation",
    "style",
    "input_fidelity",
    "safety_identifier",
    "partial_images",
)
"""Fields of OpenAI's contract that change no pixel here: taken, and named in the answer's header."""

UNSUPPORTED_FIELDS = ("frame_count", "frame_duration_ms", "complexity", "svg")
"""Fields of OpenAI's contract that would change the picture in a way that is not offered."""


class Generation(BaseModel):
    """What every request for pictures may say. None and absent mean the same: the model's default."""

    # Strict: "4" is not a number of steps. A client that is wrong about a type is wrong about more.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    model: str | None = None
    negative_prompt: Prompt | None = None
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = None
    size: str | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    scheduler: str | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    deterministic: bool | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    priority: Literal["interactive", "standard", "batch"] | None = None
    """How urgent the job is; without it that of somebody who waits, or standard where nobody does."""
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = None
    """A job that no worker has begun within so many seconds ends as expired."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, data: Any) -> Any:
        """Name the field that was probably meant: a mistyped knob that is dropped in silence costs hours."""
        for name in data if isinstance(data, dict) else ():
            if name in cls.model_fields:
                continue
            shown = repr(name[:80])
            if name in UNSUPPORTED_FIELDS:
                raise PydanticCustomError("unsupported_field", "{shown} is not supported", {"shown": shown})
            near = difflib.get_close_matches(name[:80], cls.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PydanticCustomError("unknown_field", "unknown field {shown}{hint}", {"shown": shown, "hint": hint})
        return data


class ImagesRequest(Generation):
    """Body of ``POST /v1/images/generations``: OpenAI's fields, and the knobs of this server at the same level."""

    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: str | None = None
    quality: str | None = None
    moderation: str | None = None
    style: str | None = None
    input_fidelity: str | None = None
    safety_identifier: str | None = None


class JobRequest(Generation):
    """Body of ``POST /v1/jobs``."""

    task: Literal["text-to-image"] | None = None


class Picture(BaseModel):
    """One picture of a synchronous answer: OpenAI's ``b64_json``, and what is needed to make it again."""

    b64_json: str
    seed: int
    content_sha256: str
    numerics_id: str
    job: str


class ImagesAnswer(BaseModel):
    """Answer of ``POST /v1/images/generations``."""

    created: int
    output_format: str
    size: str
    data: list[Picture]


class Progress(BaseModel):
    """How far a running job is."""

    step: int
    steps: int


class ResultView(BaseModel):
    """One finished picture, to be fetched at ``url``."""

    index: int
    url: str
    content_sha256: str
    media_type: str
    seed: int
    numerics_id: str


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
    request: TextToImage
    results: list[ResultView]
    error: JobError | None

    @classmethod
    def of(cls, job: Job, progress: Progress | None) -> JobView:
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
            request=job.request,
            results=[
                ResultView(index=i, url=f"/v1/jobs/{job.id}/results/{i}", **result.model_dump())
                for i, result in enumerate(job.results)
            ],
            error=job.error,
        )


class JobList(BaseModel):
    """A page of jobs, newest first; the next one starts after ``last_id``."""

    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelView(BaseModel):
    """OpenAI's description of a model, and what this server lets a request choose."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "darkroom"
    task: Literal["text-to-image"] = "text-to-image"
    sizes: list[str]
    """The native one first."""
    default_steps: int
    max_steps: int
    default_guidance: float
    max_guidance: float
    default_scheduler: str
    schedulers: list[str]


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
