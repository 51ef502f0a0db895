"""A piece: one picture or clip of a job on its way through the stages."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from models.families.row import Checkpoint, Row, resume
from service.jobs.job import Adapter, ImageToVideo, PictureRequest, Priority
from service.worker.batch import BatchKey, Item, Stage
from service.worker.input import NO_INPUTS, Inputs
from service.worker.loaded import LoadedModel
from service.worker.numerics import Numerics
from service.worker.prompts import Prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Where a piece stands, apart from what its request says. Under the same numerics id it can go on from there."""

    conditions: str
    """SHA-256 of what the row is conditioned on; empty when there is no row."""
    row: Checkpoint | None
    frames: NDArray[np.uint8] | None = None
    """Of a clip, [N, H, W, 3]: all that are decoded."""


@dataclass
class Piece(ABC):
    """What pictures and clips have in common: a row, once it is encoded, and the pixels in the end."""

    request: PictureRequest | ImageToVideo
    seed: int
    arrived_at: float
    """When its job was accepted, Unix seconds."""
    loaded: LoadedModel
    numerics: Numerics
    inputs: Inputs = NO_INPUTS
    priority: Priority = Priority.STANDARD
    deadline_at: float | None = None
    saved: Snapshot | None = None
    """Where it is to go on, made under these numerics."""
    row: Row | None = None
    """None until it is encoded."""
    pixels: NDArray[np.uint8] | None = None
    """The result: [H, W, 3], or [T, H, W, 3] of a clip. None until all is decoded."""

    @property
    def stage(self) -> Stage:
        """The stage that comes next."""
        if self.row is None:
            return Stage.ENCODE
        return Stage.DECODE if self.row.finished else Stage.DENOISE

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """What is in the weights of its networks, in an order of their own."""
        return tuple(sorted(self.request.loras, key=lambda adapter: adapter.name))

    @property
    @abstractmethod
    def key(self) -> BatchKey:
        """What the next piece of work can be batched with."""

    @property
    def requirements(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Identities of the networks of the next stage, and of the later ones."""
        return self.loaded.requirements(self.stage, self.inputs.image is not None)

    @property
    def lanes(self) -> int:
        """Lanes of the next piece of work."""
        if self.row is None or self.row.finished:
            return 1
        return self.row.lanes_left

    @property
    def evaluations(self) -> int:
        """Forward passes until the stage is over."""
        return 1 if self.row is None or self.row.finished else len(self.row.plan.lines) - self.row.line

    @property
    def steps(self) -> int:
        """Of the whole piece, as the request counts them."""
        return self.request.num_inference_steps

    @property
    def steps_done(self) -> int:
        """Of these; a solver may have more or fewer lines than steps, and a row from a picture begins on the way."""
        return 0 if self.row is None else self.row.line * self.request.num_inference_steps // len(self.row.plan.lines)

    @property
    def lines_done(self) -> int:
        """Evaluations that were made for it."""
        return 0 if self.row is None else self.row.line

    def item(self, row: int) -> Item:
        """The next piece of work, for the scheduler."""
        needs, keeps = self.requirements
        return Item(
            row=row,
            key=self.key,
            lanes=self.lanes,
            evaluations=self.evaluations,
            arrived_at=self.arrived_at,
            priority=self.priority,
            deadline_at=self.deadline_at,
            needs=needs,
            keeps=keeps,
        )

    def encode(self, prompts: Prompts) -> None:
        """Make the row: at line 0, or where ``saved`` says. If it raises, nothing has changed."""
        row = self.begin(prompts)
        if self.saved is not None and self.saved.row is not None:
            if self.saved.conditions != conditions_digest(row):
                logger.warning("a checkpoint is of other conditions; begun anew", extra={"model": self.request.model})
                self.begin_anew()
                row = self.begin(prompts)
            else:
                row = resume(row, self.saved.row)
        self.row, self.saved = row, None

    @abstractmethod
    def begin(self, prompts: Prompts) -> Row:
        """A row at line 0."""

    def begin_anew(self) -> None:
        """Forget what a checkpoint brought."""
        self.saved = None

    @classmethod
    @abstractmethod
    def decode(cls, pieces: Sequence[Self]) -> None:
        """One decoding pass of each of these, which share a key. If it raises, nothing has changed."""

    def snapshot(self) -> Snapshot:
        """Where it stands now; it may go on."""
        if self.row is None:
            return Snapshot("", None)
        return Snapshot(conditions_digest(self.row), Checkpoint(self.row.state.to("cpu", copy=True), self.row.line))


def conditions_digest(row: Row) -> str:
    """SHA-256 of a row's conditions: names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, condition in sorted(row.conditions.items()):
        for part in (condition.context, condition.vector, condition.concat):
            if part is not None:
                digest.update(f"{name}{tuple(part.shape)}{part.dtype}".encode())
                digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
