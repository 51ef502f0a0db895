"""What a job is. Plain data that the API writes, the store keeps and the worker reads."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict


class JobState(StrEnum):
    """A job is accepted as ``queued`` and ends in exactly one of the last four."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Priority(StrEnum):
    """How urgent a job is. A class decides how long a job waits behind others, never whether it runs at all."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextToImage(_Frozen):
    """A text-to-image request with every default filled in, so that it means the same on any worker and any day."""

    task: Literal["text-to-image"] = "text-to-image"
    model: str
    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    """Seed of the first picture; picture i uses seed + i."""
    n: int = 1
    deterministic: bool = True
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = 100
    """Quality of jpeg and webp, 1 to 100."""


class Result(_Frozen):
    """One finished picture."""

    content_sha256: str
    """Name of the bytes in the artifact store, and their hash."""
    media_type: str
    seed: int
    numerics_id: str
    """What the bytes depend on beside the request: back end, precision, tables, device class, invariance class."""


class JobError(_Frozen):
    """Why a job failed: a stable code and a sentence for people."""

    code: str
    message: str


class Job(_Frozen):
    """A job as the store knows it. Times are Unix seconds."""

    id: str
    request: TextToImage
    state: JobState
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    """How often a worker has claimed it."""
    results: tuple[Result, ...] = ()
    error: JobError | None = None
    priority: Priority = Priority.STANDARD
    deadline_at: float | None = None
    """A job that no worker has begun by then ends as expired."""
    checkpoint: str | None = None
    """Name of the artifact from which a worker can go on; gone when the job has ended."""


class Lease(_Frozen):
    """A worker's right to write the outcome of a job until ``expires_at`` (Unix seconds)."""

    id: str
    job: Job
    expires_at: float
