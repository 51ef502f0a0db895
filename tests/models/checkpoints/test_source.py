"""How a parameter is taken from what is stored."""

from __future__ import annotations

import pytest
import torch

from models.checkpoints.source import Source, below, own_names

STORED = torch.arange(24.0).view(6, 4)


@pytest.mark.parametrize(
    ("source", "stored", "expected"),
    [
        (Source("a"), STORED, STORED),
        (Source("a", third=1), STORED, STORED[2:4]),
        (Source("a", third=1, heads=2), STORED, STORED[[1, 4]]),
        (Source("a", transposed=True), STORED, STORED.T),
        (Source("a", swapped=True), STORED, torch.cat([STORED[3:], STORED[:3]])),
        (Source("a"), STORED[..., None, None], STORED),
        (Source("a"), STORED, STORED[..., None, None]),
    ],
)
def test_a_parameter_is_taken_as_it_was_written(source: Source, stored: torch.Tensor, expected: torch.Tensor) -> None:
    assert source.fits(tuple(stored.shape), tuple(expected.shape))
    taken = source.take(stored, tuple(expected.shape))
    assert torch.equal(taken, expected) and taken.is_contiguous()


@pytest.mark.parametrize(
    ("source", "stored", "own"),
    [
        (Source("a"), (6, 4), (4, 6)),
        (Source("a"), (6, 4, 3, 3), (6, 4)),
        (Source("a"), (24,), (6, 4)),
        (Source("a", third=0), (7, 4), (2, 4)),
        (Source("a", third=0, heads=4), (6, 4), (2, 4)),
        (Source("a", third=0), (), (2, 4)),
        (Source("a", third=0), (6, 4), (6, 4)),
        (Source("a", transposed=True), (6, 4), (6, 4)),
    ],
)
def test_another_shape_does_not_fit(source: Source, stored: tuple[int, ...], own: tuple[int, ...]) -> None:
    assert not source.fits(stored, own)


def test_thirds_lie_side_by_side_in_what_is_stored_and_are_not_copied() -> None:
    thirds = [Source("a", third=third).take(STORED, (2, 4)) for third in range(3)]
    starts = [third.data_ptr() - STORED.data_ptr() for third in thirds]
    assert starts == [0, 32, 64] and all(third.is_contiguous() for third in thirds)


def test_names_inside_a_larger_file() -> None:
    assert below("unet.", own_names)("a") == (Source("unet.a"),)
    assert Source("a", third=2).under("x.") == Source("x.a", third=2)
