"""Runs one batch of one stage on loaded models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.families.row import Denoiser, advance, evaluate_part
from models.families.text_to_image import decode_latents
from models.preview import clean_estimate, moment
from service.metrics import WorkerMetrics
from service.worker.batch import Stage
from service.worker.graphs import CudaCapture, Graphs
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.prompts import Prompts
from service.worker.room import free_what_can_be_freed, out_of_memory
from service.worker.settle import settle


@dataclass(frozen=True)
class Preview:
    """What a picture looks like on its way."""

    picture: Picture
    part: int
    latent: Tensor
    """[C, h, w] on the CPU, an estimate of the clean one."""
    pixels: NDArray[np.uint8] | None
    """[H, W, 3] of that latent, decoded by the model's small decoder; without one, for the first preview of the model
    alone, from which the others learn how."""


class DeviceLost(SystemExit):
    """A fault on the GPU, such as a kernel that wrote where it may not, after which every call of this process fails.
    The process ends with it: its jobs go back to the queue, and one that takes three workers with it is failed."""


class Runner:
    """Executes batches. A batch that raises leaves every piece as it was."""

    def __init__(self, metrics: WorkerMetrics | None = None) -> None:
        self._prompts = Prompts(metrics or WorkerMetrics())
        self._previewed: set[str] = set()  # numerics ids
        self._graphs: Graphs | None = None

    def run(self, stage: Stage, pieces: Sequence[Piece], lanes: int | None = None) -> list[Preview]:
        """One batch of pieces of one key, to its end on the device; the previews that became due with it.

        Where the memory is too small, that of the CUDA graphs is given back and the batch is made once more.

        Args:
            stage: of all of them.
            pieces: those of the batch.
            lanes: of a single piece, run only so many of those that its step has left; None: all.

        Raises:
            DeviceLost: nothing runs on the GPU any more.
        """
        try:
            return self._run(stage, pieces, lanes)
        except Exception as error:
            if _is_lost(pieces[0].loaded.model.device):
                raise DeviceLost(f"the GPU is lost: {error}") from error
            if self._graphs is None or not self._graphs.held_bytes or not out_of_memory(error):
                raise
        self._graphs.shrink()
        free_what_can_be_freed()
        return self._run(stage, pieces, lanes)

    def encode(self, pieces: Sequence[Piece]) -> None:
        """Requests to rows, one at a time: the bytes of one must not depend on its neighbours."""
        for piece in pieces:
            piece.encode(self._prompts)
            settle(piece)

    def denoise(self, pieces: Sequence[Piece]) -> list[Preview]:
        """One step of every piece in one evaluation."""
        due = [
            (piece, piece.preview_part, moment(piece.row))
            for piece in pieces
            if isinstance(piece, Picture) and piece.row is not None and piece.preview_part is not None
        ]
        rows = [piece.row for piece in pieces if piece.row is not None]
        advance(self._denoisers(pieces[0].loaded), rows, pieces[0].numerics.padded_lanes)
        return [
            self._preview(piece, part, clean_estimate(before, piece.row))
            for piece, part, before in due
            if piece.row is not None and part is not None
        ]

    def decode(self, pieces: Sequence[Piece]) -> None:
        """Finished latents to pixels, of a clip one chunk."""
        type(pieces[0]).decode(pieces)

    def _run(self, stage: Stage, pieces: Sequence[Piece], lanes: int | None) -> list[Preview]:
        shown: list[Preview] = []
        row = pieces[0].row
        if stage is Stage.DENOISE and row is not None and lanes is not None and lanes < row.lanes_left:
            evaluate_part(self._denoisers(pieces[0].loaded), row, lanes, pieces[0].numerics.padded_lanes)
        elif stage is Stage.DENOISE:
            shown = self.denoise(pieces)
        elif stage is Stage.ENCODE:
            self.encode(pieces)
        else:
            self.decode(pieces)
        device = pieces[0].loaded.model.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what a batch costs is measured, and its errors are its own
        return shown

    def _denoisers(self, loaded: LoadedModel) -> Mapping[str, Denoiser]:
        """The networks of a model's steps, replayed as graphs where that is wanted."""
        denoisers = loaded.model.denoisers
        if not loaded.graphs:
            return denoisers
        self._graphs = self._graphs or Graphs(CudaCapture())
        network = loaded.networks["denoiser"]
        network.get()  # a replay does not ask for it, but uses it
        return self._graphs.over(denoisers, network.identity, network.version)

    def _preview(self, picture: Picture, part: int, latent: Tensor) -> Preview:
        decoder = picture.model.fast_decoder
        if decoder is None:
            if picture.numerics.id in self._previewed:
                return Preview(picture, part, latent.cpu(), None)
            self._previewed.add(picture.numerics.id)
            decoder = picture.model.decoder
        return Preview(picture, part, latent.cpu(), decode_latents(decoder, latent[None])[0])


def _is_lost(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
