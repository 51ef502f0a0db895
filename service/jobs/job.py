"""What a job is. Plain data that the API writes, the store keeps and the worker reads."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


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


class Adapter(_Frozen):
    """One low-rank adaptation (LoRA) of a request, from the server's own folder of adapters."""

    name: str
    scale: float = 1.0


class _Generation(_Frozen):
    """What every request says, with every default filled in, so that it means the same on any worker and any day."""

    model: str
    prompt: str = ""
    """Written into the file also where the model takes no text."""
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    """Seed of the first row; row i uses seed + i."""
    n: int = 1
    """Pictures or clips; each is a row."""
    deterministic: bool = True
    loras: tuple[Adapter, ...] = ()
    output_compression: int = 100
    """Quality of jpeg and webp, 1 to 100."""
    metadata: bool = True
    """Whether the file says what made it."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the artifacts that the request begins from; they live as long as its job."""
        return ()


class _Picture(_Generation):
    """What every request for pictures says."""

    negative_prompt: str = ""
    fast_decoder: bool = False
    """Decode with the model's small decoder, where it has one."""
    partial_images: int = 0
    """Pictures shown while a row is on its way, at most so many and evenly spread over its steps."""
    output_format: Literal["png", "jpeg", "webp"] = "png"


class TextToImage(_Picture):
    """Pictures from a prompt."""

    task: Literal["text-to-image"] = "text-to-image"


class ImageToImage(_Picture):
    """Pictures from a prompt and a picture (SDEdit, Meng et al. 2022)."""

    task: Literal["image-to-image"] = "image-to-image"
    image: str
    """Artifact: a png of ``width`` x ``height``."""
    strength: float
    """How much of the way from the picture to noise the row begins, above 0 and at most 1."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The picture."""
        return (self.image,)


class Inpainting(_Picture):
    """Pictures from a prompt, a picture and a mask of what may change in it."""

    task: Literal["inpainting"] = "inpainting"
    image: str
    """Artifact: a png of ``width`` x ``height``."""
    mask: str
    """Artifact: a grey png of ``width`` x ``height``, white where the row may paint."""
    strength: float = 1.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The picture and the mask."""
        return (self.image, self.mask)


class Upscaling(_Picture):
    """Pictures that are larger than a given one, which a prompt may describe (Rombach et al. 2022, section 4.4)."""

    task: Literal["upscaling"] = "upscaling"
    image: str
    """Artifact: a png of ``width / factor`` x ``height / factor``."""
    factor: int
    """Times by which each side grows."""
    noise_level: int
    """Of the noise put on the picture before the network sees it: more leaves it more to invent."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The picture."""
        return (self.image,)


class ImageToVideo(_Generation):
    """A clip from a picture (Blattmann et al. 2023)."""

    task: Literal["image-to-video"] = "image-to-video"
    image: str
    """Artifact: a png of ``width`` x ``height``, the first frame."""
    frames: int
    """Frames of one pass of the model."""
    segments: int = 1
    """Passes; each begins from the last frame of the one before, which is not repeated in the clip."""
    fps: int
    """Frames a second, of the file and as the model is told."""
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    min_guidance_scale: float = 1.0
    """Guidance of the first frame; it grows to ``guidance_scale`` on the last."""
    decode_chunk_size: int | None = None
    """Frames decoded together: a setting of memory, and of quality. None: the model's own."""
    output_format: Literal["mp4"] = "mp4"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The picture."""
        return (self.image,)


Task = Literal["text-to-image", "image-to-image", "inpainting", "upscaling", "image-to-video"]
PictureRequest = TextToImage | ImageToImage | Inpainting | Upscaling
Request = Annotated[PictureRequest | ImageToVideo, Field(discriminator="task")]
REQUEST: TypeAdapter[PictureRequest | ImageToVideo] = TypeAdapter(Request)
"""Reads any request from JSON."""


class Variant(_Frozen):
    """Another file made of the same result: a clip's thumbnail or spritesheet."""

    name: str
    content_sha256: str
    media_type: str


class Result(_Frozen):
    """One finished picture or clip."""

    content_sha256: str
    """Name of the bytes in the artifact store, and their hash."""
    media_type: str
    seed: int
    numerics_id: str
    """What the bytes depend on beside the request: back end, precision, tables, device class, invariance class."""
    variants: tuple[Variant, ...] = ()

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Names of all its files."""
        return (self.content_sha256, *(variant.content_sha256 for variant in self.variants))


class JobError(_Frozen):
    """Why a job failed: a stable code and a sentence for people."""

    code: str
    message: str


class Job(_Frozen):
    """A job as the store knows it. Times are Unix seconds."""

    id: str
    request: Request
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
