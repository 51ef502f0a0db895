"""What a row's bytes depend on beside its request, and what makes two networks the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from models.spec.model import ModelSpec
from service.worker.placement import Placement

MAX_LANES = 16
STRICT_LANES = 8
"""Libraries of matrix products and convolutions choose their order of summation by the batch size: only a constant one
gives constant bytes."""
STRICT_LARGE_LANES = 2
"""Those of one guided clip, or of one guided picture of a megapixel on a GPU, which fills the device alone."""
MEGAPIXEL = 2**20


@dataclass(frozen=True)
class Numerics:
    """How a row's forward passes are run. A row keeps the one it began with until it is finished."""

    id: str
    padded_lanes: int
    """Every denoising batch runs at least this many lanes; 0 for no padding."""
    max_lanes: int
    """Every denoising batch runs at most this many lanes."""
    lone_decode: bool
    """Whether rows must be decoded one by one for their bytes to be their own."""


def strict_lanes(spec: ModelSpec, place: Placement) -> int:
    """Lanes of every batch of rows whose bytes are to be their own: as many as fill the device without making one row
    wait for many."""
    large = place.on_gpu and max(width * height for width, height in spec.sizes) >= MEGAPIXEL
    return STRICT_LARGE_LANES if large or spec.system.task == "image-to-video" else STRICT_LANES


def numerics_id(parts: Mapping[str, str]) -> str:
    """A short stable hash of everything named in ``parts`` (back end, precision, engine, device class, invariance)."""
    return _digest(dict(parts))


def network_id(role: str, weights: str, runs_on: str) -> str:
    """The identity of a network: models that have it in common have it in memory once.

    Args:
        role: what it is called in logs.
        weights: hash of its weight files and config.
        runs_on: back end and precision.
    """
    return f"{role}-{_digest([weights, runs_on])}"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
