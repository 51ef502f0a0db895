"""Numerics ids: what a row's bytes depend on beside its request."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


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


def numerics_id(parts: dict[str, str]) -> str:
    """A short stable hash of everything named in ``parts`` (back end, precision, engine, device class, invariance)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
