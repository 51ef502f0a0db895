"""A piece goes the way that takes its row, once it is encoded; rows on engines are in test_upgrades.py beside this."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.worker.clip import Clip
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel, RowShape
from service.worker.numerics import Numerics
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.runner import Runner
from tests.support.rig import a_picture, make_clip, make_request


def with_way(torch_way: LoadedModel, seen: list[RowShape], takes: bool) -> LoadedModel:
    """The model with a way before that of torch."""

    def look(shape: RowShape) -> bool:
        seen.append(shape)
        return takes

    strict, fast = Numerics("strict", 2, 2, True), Numerics("fast", 0, 2, True)
    model = replace(torch_way.model)
    return replace(torch_way, model=model, strict=strict, fast=fast, takes=look, otherwise=(torch_way,))


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_a_picture_is_settled_when_it_is_encoded(loaded: LoadedModel, takes: bool, strict: bool) -> None:
    seen: list[RowShape] = []
    model = with_way(loaded, seen, takes)
    piece = Picture(make_request(), 7, 0.0, model, model.numerics(strict))
    Runner().encode([piece])
    way = model if takes else loaded
    assert piece.loaded is way and piece.numerics is way.numerics(strict) and piece.model is way.model
    assert [shape.chunks for shape in seen] == [frozenset()]


@pytest.mark.parametrize(("chunk", "chunks"), [(None, {3}), (2, {2, 1}), (1, {1}), (8, {3})])
def test_a_clip_is_settled_by_its_chunks_too(clip_model: LoadedModel, chunk: int | None, chunks: set[int]) -> None:
    seen: list[RowShape] = []
    model = with_way(clip_model, seen, False)
    request = make_clip("a", decode_chunk_size=chunk)
    piece: Piece = Clip(request, 7, 0.0, model, model.strict, Inputs(a_picture()))
    Runner().encode([piece])
    assert piece.loaded is clip_model and isinstance(piece, Clip) and piece.model is clip_model.model
    assert [shape.chunks for shape in seen] == [chunks] and len(seen[0].latent) == 4
