"""Which work runs next: one pure function over everything that waits. No torch, no clock, no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Stage(StrEnum):
    """The kinds of work a row goes through."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True)
class BatchKey:
    """Items of equal keys can share one forward pass."""

    stage: Stage
    model: str
    network: str
    """The network that runs: a plan line's name, its variants joined by "+", or the stage's own."""
    shape: tuple[int, ...]
    """Latent channels, height and width."""
    tokens: int
    """Length of the context; 0 outside the denoiser."""
    numerics_id: str
    max_lanes: int
    """Lanes of the largest batch of this key."""


@dataclass(frozen=True)
class Item:
    """The next piece of work of one row."""

    row: int
    """The caller's name for the row."""
    key: BatchKey
    lanes: int
    evaluations: int
    """Forward passes until this stage is over, this one included: the steps left, or 1."""
    arrived_at: float
    """When the row's job was accepted, in the seconds of ``now``."""


@dataclass(frozen=True)
class Limits:
    """Bounds of every batch."""

    max_seconds: float = 1.0
    """No batch is predicted to hold the device longer, unless a single item does."""


@dataclass(frozen=True)
class Batch:
    """Rows to run together."""

    key: BatchKey
    rows: tuple[int, ...]
    lanes: int


class Costs(Protocol):
    """What is known of the price of work."""

    def seconds(self, key: BatchKey, lanes: int) -> float:
        """Predicted seconds of one forward pass of ``lanes`` lanes, positive."""


def next_batch(items: Sequence[Item], costs: Costs, limits: Limits, now: float) -> Batch | None:
    """Choose the batch that runs next; None when nothing waits.

    The item of the highest response ratio, (waited + work left) / work left, leads (Brinch Hansen 1971); the items of
    its key follow in the same order while the batch stays within the limits. Short work overtakes long work, and long
    work cannot starve: its ratio grows for as long as it waits.
    """
    if not items:
        return None
    ranked = sorted(items, key=lambda item: (-response_ratio(item, costs, now), item.arrived_at, item.row))
    key = ranked[0].key
    chosen: list[int] = []
    lanes = 0
    for item in ranked:
        if item.key != key:
            continue
        wanted = lanes + item.lanes
        fits = wanted <= key.max_lanes and costs.seconds(key, wanted) <= limits.max_seconds
        if chosen and not fits:
            continue
        chosen.append(item.row)
        lanes = wanted
    return Batch(key, tuple(chosen), lanes)


def response_ratio(item: Item, costs: Costs, now: float) -> float:
    """(waited + work left in the stage, alone) / work left, at least 1."""
    left = item.evaluations * costs.seconds(item.key, item.lanes)
    return 1.0 + max(0.0, now - item.arrived_at) / left
