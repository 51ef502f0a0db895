"""Runs one batch of one stage on loaded models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.families.row import advance
from models.families.text_to_image import decode_latents
from models.preview import clean_estimate, moment
from service.metrics import WorkerMetrics
from service.worker.batch import Stage
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.prompts import Prompts


@dataclass(frozen=True)
class Preview:
    """What a picture looks like on its way."""

    picture: Picture
    part: int
    latent: Tensor
    """[C, h, w], an estimate of the clean one."""
    pixels: NDArray[np.uint8] | None
    """[H, W, 3] of that latent, decoded for the first preview of a model, from which the others learn how."""


class Runner:
    """Executes batches. A batch that raises leaves every piece as it was."""

    def __init__(self, metrics: WorkerMetrics | None = None) -> None:
        self._prompts = Prompts(metrics or WorkerMetrics())
        self._previewed: set[str] = set()  # numerics ids

    def run(self, stage: Stage, pieces: Sequence[Piece]) -> list[Preview]:
        """One batch of pieces of one key; the previews that became due with it."""
        if stage is Stage.DENOISE:
            return self.denoise(pieces)
        if stage is Stage.ENCODE:
            self.encode(pieces)
        else:
            self.decode(pieces)
        return []

    def encode(self, pieces: Sequence[Piece]) -> None:
        """Requests to rows, one at a time: the bytes of one must not depend on its neighbours."""
        for piece in pieces:
            piece.encode(self._prompts)

    def denoise(self, pieces: Sequence[Piece]) -> list[Preview]:
        """One step of every piece in one evaluation."""
        due = [
            (piece, piece.preview_part, moment(piece.row))
            for piece in pieces
            if isinstance(piece, Picture) and piece.row is not None and piece.preview_part is not None
        ]
        rows = [piece.row for piece in pieces if piece.row is not None]
        advance(pieces[0].loaded.model.denoisers, rows, pieces[0].numerics.padded_lanes)
        return [
            self._preview(piece, part, clean_estimate(before, piece.row))
            for piece, part, before in due
            if piece.row is not None and part is not None
        ]

    def decode(self, pieces: Sequence[Piece]) -> None:
        """Finished latents to pixels, of a clip one chunk."""
        type(pieces[0]).decode(pieces)

    def _preview(self, picture: Picture, part: int, latent: Tensor) -> Preview:
        if picture.numerics.id in self._previewed:
            return Preview(picture, part, latent, None)
        self._previewed.add(picture.numerics.id)
        return Preview(picture, part, latent, decode_latents(picture.model.decoder, latent[None])[0])
