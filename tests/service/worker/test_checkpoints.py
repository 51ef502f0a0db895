"""Checkpoint files: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save

from models.families.row import Checkpoint
from service.jobs.job import Result, Variant
from service.worker.checkpoints import EVERY_S, MOST_SHARE, Pace, pack, unpack
from service.worker.piece import Snapshot

STATE = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
FRAMES = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
RESULT = Result(
    content_sha256="1" * 64,
    media_type="video/mp4",
    seed=5,
    numerics_id="n",
    variants=(Variant(name="thumbnail", content_sha256="2" * 64, media_type="image/webp"),),
)


def test_every_kind_of_piece_comes_back() -> None:
    pieces = [Snapshot("c", Checkpoint(STATE, 7)), RESULT, None, Snapshot("", None, FRAMES), Snapshot("", None)]
    found = unpack(pack("job", "numerics", pieces))
    assert (found.job, found.numerics_id, len(found.pieces)) == ("job", "numerics", 5)
    running, done, new, between, fresh = found.pieces
    assert isinstance(running, Snapshot) and running.row is not None
    assert torch.equal(running.row.state, STATE) and running.row.line == 7 and running.conditions == "c"
    assert done == RESULT and new is None
    assert isinstance(between, Snapshot) and between.row is None and between.frames is not None
    assert np.array_equal(between.frames, FRAMES)
    assert fresh == Snapshot("", None)


def test_a_row_at_line_0_has_a_line() -> None:
    (found,) = unpack(pack("job", "n", [Snapshot("c", Checkpoint(STATE, 0))])).pieces
    assert isinstance(found, Snapshot) and found.row is not None and found.row.line == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint", save({"a": STATE}), save({}, metadata={"darkroom": '{"version": 1}'})],
)
def test_what_is_no_checkpoint(content: bytes) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        unpack(content)


def test_another_version() -> None:
    with pytest.raises(ValueError, match="version 9, expected 1"):
        unpack(save({"a": STATE}, metadata={"darkroom": '{"version": 9}'}))


def test_checkpoints_take_at_most_their_share() -> None:
    pace = Pace()
    assert not pace.due(EVERY_S - 0.1) and pace.due(EVERY_S)
    for _ in range(30):
        pace.took(0.4)
    assert not pace.due(0.39 / MOST_SHARE) and pace.due(0.41 / MOST_SHARE)
    for _ in range(30):
        pace.took(0.001)
    assert pace.due(EVERY_S)
