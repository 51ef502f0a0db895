"""From the wire to a job: every default filled in, every limit of the model checked."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TypeVar

from models.plan import SOLVERS
from models.spec.model import SOLVER_OF_SCHEDULER, ModelSpec
from service.api.schema import MAX_SEED, Generation
from service.errors import InvalidRequest, UnknownModel
from service.jobs.job import TextToImage

Number = TypeVar("Number", int, float)


def resolve(body: Generation, models: dict[str, ModelSpec], idempotency_key: str | None = None) -> TextToImage:
    """The job that a request asks for.

    Raises:
        UnknownModel: no such model is installed.
        InvalidRequest: a value is beyond what the model offers.
    """
    spec = find_model(body.model, models)
    width, height = _size(body.size, spec)
    n = body.n or 1
    return TextToImage(
        model=spec.name,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        width=width,
        height=height,
        num_inference_steps=_at_most("num_inference_steps", body.num_inference_steps, spec.max_steps) or spec.steps,
        guidance_scale=_at_most("guidance_scale", body.guidance_scale, spec.max_guidance) or spec.guidance,
        scheduler=_scheduler(body.scheduler, spec),
        seed=_seed(body.seed, n, idempotency_key),
        n=n,
        deterministic=body.deterministic is not False,
        output_format=body.output_format or "png",
        # OpenAI counts from 0, the encoders from 1.
        output_compression=100 if body.output_compression is None else max(1, body.output_compression),
    )


def find_model(name: str | None, models: dict[str, ModelSpec]) -> ModelSpec:
    """The model of that name, or the first one for None.

    Raises:
        UnknownModel: there is none; the message names those that are installed.
    """
    if name is None and models:
        return next(iter(models.values()))
    if name is None or name not in models:
        asked = "no model is named" if name is None else f"model {name[:80]!r} is not installed"
        raise UnknownModel(f"{asked}; installed: {', '.join(models) or 'none'}", param="model")
    return models[name]


def size_names(spec: ModelSpec) -> list[str]:
    """The model's sizes as requests write them."""
    return [f"{width}x{height}" for width, height in spec.sizes]


def _size(text: str | None, spec: ModelSpec) -> tuple[int, int]:
    if text is None or text == "auto":
        return spec.sizes[0]
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else None
    if size not in spec.sizes:
        offered = ", ".join(size_names(spec))
        raise InvalidRequest(f"size {text[:80]!r} is not one of {spec.name}'s: auto, {offered}", param="size")
    return size


def _scheduler(name: str | None, spec: ModelSpec) -> str:
    if name is None:
        return spec.solver
    # The class names of published folders are what users of those libraries have at hand.
    solver = SOLVER_OF_SCHEDULER.get(name, name)
    if solver not in SOLVERS:
        raise InvalidRequest(f"scheduler {name[:80]!r} is not one of {', '.join(SOLVERS)}", param="scheduler")
    return solver


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
        raise InvalidRequest(f"{field} {value} is over the model's limit of {limit}", param=field)
    return value
