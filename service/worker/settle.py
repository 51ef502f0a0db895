"""Which of a model's ways a row goes, decided when it begins."""

from __future__ import annotations

from models.families.image_to_video import ImageToVideoModel
from models.families.text_to_image import TextToImageModel
from service.worker.clip import Clip
from service.worker.loaded import RowShape
from service.worker.picture import Picture
from service.worker.piece import Piece


def settle(piece: Piece) -> None:
    """Choose the way of a piece that was just encoded, by the shape of its row alone, so that rows of one shape share
    batches and a row's bytes do not depend on others. A later segment of a clip goes the way of the first."""
    if not piece.loaded.otherwise or piece.row is None or piece.row.finished:
        return
    before, way = piece.loaded, piece.loaded.way(RowShape.of(piece.row, _chunks(piece)))
    piece.loaded, piece.numerics = way, way.strict if piece.numerics == before.strict else way.fast
    if isinstance(piece, Picture) and isinstance(way.model, TextToImageModel):
        piece.model = way.model
    if isinstance(piece, Clip) and isinstance(way.model, ImageToVideoModel):
        piece.model = way.model


def _chunks(piece: Piece) -> frozenset[int]:
    """Frames of the passes in which a clip is decoded."""
    if not isinstance(piece, Clip):
        return frozenset()
    chunk = piece.chunk_frames
    return frozenset({chunk, piece.request.frames % chunk} - {0})
