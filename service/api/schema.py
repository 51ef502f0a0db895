"""What a request may hold, field by field. Limits that depend on a model are in resolve, answers in views."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from service.api.references import read_reference
from service.jobs.job import Task

MAX_PROMPT_CHARS = 4000
MAX_SEED = 2**63 - 1
MAX_PICTURES = 10
MAX_DEADLINE_S = 7 * 86400
MAX_ADAPTERS = 4
MAX_ADAPTER_SCALE = 4.0
FPS = (5, 30)
"""Frames a second that Stable Video Diffusion was trained with, about."""


def _number(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) and len(value) <= 20 else value
    except ValueError:
        return value


Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Share = Annotated[float, Field(gt=0, le=1)]
Fps = Annotated[int, Field(ge=FPS[0], le=FPS[1])]
Motion = Annotated[int, Field(ge=0, le=255)]
NoiseAug = Annotated[float, Field(ge=0, le=1)]
NoiseLevel = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=1)]
Chunk = Annotated[int, Field(ge=1)]
Seconds = Annotated[
    float,
    # OpenAI's clients send a text; a number says the same.
    BeforeValidator(_number),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
File = Annotated[
    bytes,
    BeforeValidator(read_reference),
    WithJsonSchema(
        {"type": "string", "format": "byte", "description": "base64 or a data URL of it; in a form also a file"}
    ),
]
"""A picture as it was sent, still encoded."""

IGNORED_FIELDS = ("user", "quality", "moderation", "style", "input_fidelity", "safety_identifier")
"""Fields of OpenAI's contract that change no pixel here: taken, and named in the answer's header."""

UNSUPPORTED_FIELDS = ("frame_count", "frame_duration_ms", "complexity", "svg", "markup", "characters")
"""Fields of OpenAI's contract that would change the result in a way that is not offered."""


def _listed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


class StrictBody(BaseModel):
    """What all bodies share: only known fields, of the right type."""

    # Strict: "4" is not a number of steps. A client that is wrong about a type is wrong about more. Forms have only
    # texts, so they are read without.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

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


class AdapterChoice(StrictBody):
    """One adapter (LoRA) of those that the server has."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    scale: Annotated[float, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE)] = 1.0


class Generation(StrictBody):
    """What every request may say. None and absent mean the same: the model's default."""

    model: str | None = None
    prompt: Text | None = None
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = None
    size: str | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Scale | None = None
    scheduler: str | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    deterministic: bool | None = None
    loras: Annotated[list[AdapterChoice], BeforeValidator(_listed), Field(max_length=MAX_ADAPTERS)] | None = None
    """In a form also JSON text."""
    priority: Literal["interactive", "standard", "batch"] | None = None
    """How urgent the job is; without it that of somebody who waits, or standard where nobody does."""
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = None
    """A job that no worker has begun within so many seconds ends as expired."""

    @property
    def asked_task(self) -> Task | None:
        """What is to be done; None where that depends on the model."""
        return None

    @property
    def files(self) -> tuple[bytes | None, bytes | None]:
        """The picture to begin from and its mask, as they were sent."""
        return None, None


class PictureGeneration(Generation):
    """What every request for pictures may say."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    negative_prompt: Text | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    decoder: Literal["full", "fast"] | None = None
    """``fast``: the model's small decoder, where it has one: sooner, and softer."""
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    """Pictures shown on the way, of each picture."""


class ImagesRequest(PictureGeneration):
    """Body of ``POST /v1/images/generations``: OpenAI's fields, and the knobs of this server at the same level."""

    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    user: str | None = None
    quality: str | None = None
    moderation: str | None = None
    style: str | None = None
    input_fidelity: str | None = None
    safety_identifier: str | None = None

    @property
    def asked_task(self) -> Task | None:
        """Pictures from a prompt."""
        return "text-to-image"


class EditsRequest(ImagesRequest):
    """Body of ``POST /v1/images/edits``: a picture is changed as a whole, or where a mask says so."""

    image: File
    mask: File | None = None
    """What is transparent in it is painted anew; of a mask that is opaque, what is white."""
    strength: Share | None = None
    """How much is changed: the share of the steps that are run."""

    @property
    def asked_task(self) -> Task | None:
        """The mask decides."""
        return "image-to-image" if self.mask is None else "inpainting"

    @property
    def files(self) -> tuple[bytes | None, bytes | None]:
        """The picture and its mask."""
        return self.image, self.mask


class VideosRequest(Generation):
    """Body of ``POST /v1/videos``."""

    input_reference: File | None = None
    """The first frame."""
    seconds: Seconds | None = None
    fps: Fps | None = None
    motion_bucket_id: Motion | None = None
    noise_aug_strength: NoiseAug | None = None
    min_guidance_scale: Scale | None = None
    decode_chunk_size: Chunk | None = None
    user: str | None = None
    quality: str | None = None

    @property
    def asked_task(self) -> Task | None:
        """A clip from a picture."""
        return "image-to-video"

    @property
    def files(self) -> tuple[bytes | None, bytes | None]:
        """The first frame."""
        return self.input_reference, None


class JobRequest(PictureGeneration):
    """Body of ``POST /v1/jobs``: every task with every knob. Without ``task`` the model and the pictures say it."""

    task: Task | None = None
    prompt: Text | None = None  # type: ignore[assignment]  # some tasks need none; resolve asks the others for one
    image: File | None = None
    mask: File | None = None
    strength: Share | None = None
    noise_level: NoiseLevel | None = None
    seconds: Seconds | None = None
    fps: Fps | None = None
    motion_bucket_id: Motion | None = None
    noise_aug_strength: NoiseAug | None = None
    min_guidance_scale: Scale | None = None
    decode_chunk_size: Chunk | None = None

    @property
    def asked_task(self) -> Task | None:
        """As it says, or with a mask there is one answer only."""
        return "inpainting" if self.task is None and self.mask is not None else self.task

    @property
    def files(self) -> tuple[bytes | None, bytes | None]:
        """The picture and its mask."""
        return self.image, self.mask
