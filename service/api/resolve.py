"""From the wire to a job: every default filled in, every limit of the model checked."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from functools import lru_cache
from typing import TypeVar

from models.plan import Guidance, Schedule, make_plan, supported_solvers
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
    if spec.system.task != "text-to-image":
        raise InvalidRequest(f"model {spec.name!r} does {spec.system.task}, not text-to-image", param="model")
    width, height = _size(body.size, spec)
    n = body.n or 1
    steps = _at_most("num_inference_steps", body.num_inference_steps, spec.max_steps) or spec.steps
    return TextToImage(
        model=spec.name,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=_at_most("guidance_scale", body.guidance_scale, spec.max_guidance) or spec.guidance,
        scheduler=_scheduler(body.scheduler, spec, steps),
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


def schedulers(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the solvers that run on this model's noise schedule."""
    return supported_solvers(_schedule(json.dumps(spec.scheduler_config)))


def _scheduler(name: str | None, spec: ModelSpec, steps: int) -> str:
    # The class names of published folders are what users of those libraries have at hand.
    solver = spec.solver if name is None else SOLVER_OF_SCHEDULER.get(name, name)
    known = schedulers(spec)
    if solver not in known:
        raise InvalidRequest(f"scheduler {solver[:80]!r} is not one of {', '.join(known)}", param="scheduler")
    fault = _fault(json.dumps(spec.scheduler_config), solver, steps)
    if fault:
        raise InvalidRequest(f"scheduler {solver!r} cannot run {steps} steps: {fault}", param="num_inference_steps")
    return solver


@lru_cache(maxsize=64)
def _schedule(config: str) -> Schedule:
    return Schedule.from_config(json.loads(config))


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
        raise InvalidRequest(f"{field} {value} is over the model's limit of {limit}", param=field)
    return value
