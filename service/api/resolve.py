"""From the wire to a job: every default filled in, every limit of the model checked."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from models.plan import Guidance, Schedule, make_plan, supported_solvers
from models.spec.model import SOLVER_OF_SCHEDULER, ModelSpec
from service.api.clips import choose_length
from service.api.inputs import Kept, Size, nearest_proportions
from service.api.schema import MAX_SEED, Generation
from service.api.upscaling import choose_noise_level, enlargeable
from service.errors import InvalidRequest, UnknownModel
from service.jobs.job import Adapter, ImageToImage, ImageToVideo, Inpainting, Request, Task, TextToImage, Upscaling

Number = TypeVar("Number", int, float)

Keep = Callable[[bytes, bytes | None, Callable[[Size], Size], str], Kept]
"""Puts a picture and its mask where workers find them: :func:`service.api.inputs.keep_inputs` on a store."""

IMG2IMG_STRENGTH = 0.8
"""The default of the published pipelines."""

_PICTURES: frozenset[Task] = frozenset({"text-to-image", "image-to-image", "inpainting"})
_FROM_PICTURE: frozenset[Task] = frozenset({"image-to-image", "inpainting"})
_UPSCALING: frozenset[Task] = frozenset({"upscaling"})
_CLIPS: frozenset[Task] = frozenset({"image-to-video"})
TASKS_OF_FIELD: Mapping[str, frozenset[Task]] = {
    **dict.fromkeys(("negative_prompt", "output_format", "output_compression", "decoder"), _PICTURES | _UPSCALING),
    "partial_images": _PICTURES,
    "size": _PICTURES | _CLIPS,
    "image": _FROM_PICTURE | _UPSCALING | _CLIPS,
    "noise_level": _UPSCALING,
    "mask": frozenset({"inpainting"}),
    "strength": _FROM_PICTURE,
    **dict.fromkeys(
        ("seconds", "fps", "motion_bucket_id", "noise_aug_strength", "min_guidance_scale", "decode_chunk_size"), _CLIPS
    ),
}
"""Fields that not every task has."""


def resolve(
    body: Generation,
    models: Mapping[str, ModelSpec],
    idempotency_key: str | None = None,
    adapters: frozenset[str] = frozenset(),
    keep: Keep | None = None,
) -> Request:
    """The job that a request asks for. Slow where it begins from a picture, which is then decoded, fitted and kept.

    Args:
        body: what was sent.
        models: those that are installed, by name.
        idempotency_key: it also names the seed of a request without one.
        adapters: names of those that a request may use.
        keep: where pictures go; None: nowhere, and tasks that need one are refused.

    Raises:
        UnknownModel: no such model is installed.
        InvalidRequest: a value is beyond what the model offers.
    """
    given = {name: value for name in type(body).model_fields if (value := getattr(body, name)) is not None}
    task = body.asked_task
    spec = find_model(body.model, models, task)
    task = task or _task_by_content(body, spec)
    if task not in capabilities(spec):
        raise _other_task(spec, task)
    for name, tasks in TASKS_OF_FIELD.items():
        if name in given and task not in tasks:
            raise InvalidRequest(f"{name} is no field of {task}", param=name)
    size = _size(body.size, spec)
    fields = _common(body, spec, idempotency_key, adapters)
    fields |= _of_clips(given, spec, fields) if task == "image-to-video" else _of_pictures(given, task, spec)
    if task == "text-to-image":
        width, height = size or spec.sizes[0]
        return TextToImage(**fields, width=width, height=height)
    factor, noise_level = 1, 0
    if spec.upscaling is not None:
        factor, noise_level = spec.upscaling.factor, choose_noise_level(given.get("noise_level"), spec.upscaling)
    kept = _keep_inputs(body, task, spec, size, keep)
    fields |= {"image": kept.image, "width": factor * kept.size[0], "height": factor * kept.size[1]}
    if task == "image-to-video":
        return ImageToVideo(**fields)
    if task == "upscaling":
        return Upscaling(**fields, factor=factor, noise_level=noise_level)
    if task == "image-to-image":
        return ImageToImage(**fields, strength=given.get("strength", IMG2IMG_STRENGTH))
    return Inpainting(**fields, mask=kept.mask or "", strength=given.get("strength", 1.0))


def capabilities(spec: ModelSpec) -> tuple[Task, ...]:
    """What requests may ask of a model."""
    if spec.system.task != "text-to-image":
        return (spec.system.task,)
    tasks: dict[str, tuple[Task, ...]] = {
        "": ("text-to-image", "image-to-image", "inpainting"),
        "picture": ("image-to-image", "inpainting"),
        "picture and mask": ("inpainting",),
    }
    return tasks[spec.needs]


def has_fast_decoder(spec: ModelSpec) -> bool:
    """Whether the folder has a small decoder beside the full one."""
    return (spec.folder / "vae_tiny").is_dir()


def find_model(name: str | None, models: Mapping[str, ModelSpec], task: Task | None = None) -> ModelSpec:
    """The model of that name; for None the first one, of those that do ``task`` where that is given.

    Raises:
        UnknownModel: there is none; the message names those that are installed.
    """
    if name is None:
        for spec in models.values():
            if task is None or task in capabilities(spec):
                return spec
    elif (found := models.get(name)) is not None:
        return found
    asked = f"model {name[:80]!r} is not installed" if name is not None else f"no model for {task or 'any task'}"
    raise UnknownModel(f"{asked}; installed: {', '.join(models) or 'none'}", param="model")


def size_names(spec: ModelSpec) -> list[str]:
    """The model's sizes as requests write them."""
    return [f"{width}x{height}" for width, height in spec.sizes]


def schedulers(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the solvers that run on this model's noise schedule."""
    return _supported(json.dumps(spec.scheduler_config))


def _other_task(spec: ModelSpec, task: Task) -> InvalidRequest:
    """What is said of a task that a model does not do: what the request lacks, where that is all."""
    if spec.needs and spec.system.task == "text-to-image" and task in _PICTURES:
        param = "image" if task == "text-to-image" else "mask"
        message = f"{param} is required: model {spec.name!r} needs a {spec.needs} beside the prompt"
        return InvalidRequest(message, param=param, code="missing_required_parameter")
    return InvalidRequest(f"model {spec.name!r} does {', '.join(capabilities(spec))}, not {task}", param="model")


def _task_by_content(body: Generation, spec: ModelSpec) -> Task:
    if spec.system.task != "text-to-image":
        return spec.system.task
    return "text-to-image" if body.files[0] is None else "image-to-image"


def _common(body: Generation, spec: ModelSpec, idempotency_key: str | None, adapters: frozenset[str]) -> dict[str, Any]:
    """Fields of every job but its size."""
    n = body.n or 1
    steps = _at_most("num_inference_steps", body.num_inference_steps, spec.max_steps) or spec.steps
    return {
        "model": spec.name,
        "prompt": body.prompt or "",
        "num_inference_steps": steps,
        "guidance_scale": _at_most("guidance_scale", body.guidance_scale, spec.max_guidance) or spec.guidance,
        "scheduler": _scheduler(body.scheduler, spec, steps),
        "seed": _seed(body.seed, n, idempotency_key),
        "n": n,
        "deterministic": body.deterministic is not False,
        "loras": _adapters(body, adapters),
    }


def _of_pictures(given: Mapping[str, Any], task: Task, spec: ModelSpec) -> dict[str, Any]:
    if not given.get("prompt") and task != "upscaling":
        raise InvalidRequest("prompt is required", param="prompt", code="missing_required_parameter")
    fast = given.get("decoder") == "fast"
    if fast and not has_fast_decoder(spec):
        raise InvalidRequest(f"decoder 'fast': model {spec.name!r} has only the full one", param="decoder")
    return {
        "negative_prompt": given.get("negative_prompt", ""),
        "fast_decoder": fast,
        "partial_images": given.get("partial_images", 0),
        "output_format": given.get("output_format", "png"),
        # OpenAI counts from 0, the encoders from 1.
        "output_compression": max(1, given.get("output_compression", 100)),
    }


def _of_clips(given: Mapping[str, Any], spec: ModelSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        length = choose_length(spec.frames, given.get("seconds"), given.get("fps"))
    except ValueError as error:
        raise InvalidRequest(str(error), param="seconds") from None
    guidance = float(fields["guidance_scale"])
    least = _at_most("min_guidance_scale", given.get("min_guidance_scale"), guidance)
    chosen = {
        "frames": length.frames,
        "segments": length.segments,
        "fps": length.fps,
        "min_guidance_scale": least or min(1.0, guidance),
    }
    chosen |= {name: given[name] for name in ("motion_bucket_id", "noise_aug_strength") if name in given}
    if "decode_chunk_size" in given:
        chosen["decode_chunk_size"] = min(given["decode_chunk_size"], spec.frames)
    return chosen


def _keep_inputs(body: Generation, task: Task, spec: ModelSpec, size: Size | None, keep: Keep | None) -> Kept:
    image, mask = body.files
    name = "input_reference" if "input_reference" in type(body).model_fields else "image"
    if image is None or keep is None:
        raise InvalidRequest(
            f"{name} is required: {task} begins from a picture", param=name, code="missing_required_parameter"
        )
    if task == "inpainting" and mask is None:
        raise InvalidRequest("mask is required for inpainting", param="mask", code="missing_required_parameter")

    def choose(given: Size) -> Size:
        if spec.upscaling is not None:
            return enlargeable(given, spec, spec.upscaling)
        return size or nearest_proportions(given, spec.sizes)

    return keep(image, mask, choose, name)


def _adapters(body: Generation, known: frozenset[str]) -> tuple[Adapter, ...]:
    chosen = tuple(Adapter(name=one.name, scale=one.scale) for one in body.loras or ())
    for one in chosen:
        if one.name not in known:
            offered = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(f"loras: {one.name[:80]!r} is not installed; installed: {offered}", param="loras")
    if len({one.name for one in chosen}) < len(chosen):
        raise InvalidRequest("loras: each may be named once", param="loras")
    return tuple(one for one in chosen if one.scale != 0.0)


def _size(text: str | None, spec: ModelSpec) -> Size | None:
    """The asked size; None: the model's own, or that which fits the picture."""
    if text is None or text == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else None
    if size not in spec.sizes:
        offered = ", ".join(size_names(spec))
        raise InvalidRequest(f"size {text[:80]!r} is not one of {spec.name}'s: auto, {offered}", param="size")
    return size


def _scheduler(name: str | None, spec: ModelSpec, steps: int) -> str:
    # The class names of published folders are what users of those libraries have at hand.
    solver = spec.solver if name is None else SOLVER_OF_SCHEDULER.get(name, name)
    config = json.dumps(spec.scheduler_config)
    known = _supported(config)
    if solver not in known:
        raise InvalidRequest(f"scheduler {solver[:80]!r} is not one of {', '.join(known)}", param="scheduler")
    fault = _fault(config, solver, steps)
    if fault:
        raise InvalidRequest(f"scheduler {solver!r} cannot run {steps} steps: {fault}", param="num_inference_steps")
    return solver


@lru_cache(maxsize=64)
def _schedule(config: str) -> Schedule:
    return Schedule.from_config(json.loads(config))


@lru_cache(maxsize=64)
def _supported(config: str) -> tuple[str, ...]:
    return supported_solvers(_schedule(config))


@lru_cache(maxsize=4096)
def _fault(config: str, solver: str, steps: int) -> str:
    """Why there is no such plan; empty when there is one."""
    try:
        make_plan(_schedule(config), solver, steps, Guidance())
    except ValueError as error:
        return str(error)
    return ""


def _seed(seed: int | None, n: int, idempotency_key: str | None) -> int:
    if seed is None and idempotency_key is None:
        return secrets.randbelow(2**32)  # short enough to be read aloud, and exact in JavaScript
    if seed is None:
        # A retry under the same key must be the same request, so its seed cannot be a new one.
        return int.from_bytes(hashlib.sha256(str(idempotency_key).encode()).digest()[:4], "big")
    if seed + n - 1 > MAX_SEED:
        raise InvalidRequest(f"seed {seed} is too large for n = {n}: seed + n - 1 is at most {MAX_SEED}", param="seed")
    return seed


def _at_most(field: str, value: Number | None, limit: Number) -> Number | None:
    if value is not None and value > limit:
        raise InvalidRequest(f"{field} {value} is over the limit of {limit}", param=field)
    return value
