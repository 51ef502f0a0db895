"""What the cost table predicts from what it was told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker.batch import BatchKey, Stage
from service.worker.cost import FIRST_GUESS_S, SMOOTHING, CostTable

KEY = BatchKey(Stage.DENOISE, "model", "unet", (4, 8, 8), 7, "id", 16)
OTHER = BatchKey(Stage.DECODE, "model", "vae", (4, 8, 8), 7, "id", 8)


def table(known: dict[int, float]) -> CostTable:
    costs = CostTable()
    for lanes, seconds in known.items():
        costs.measured(KEY, lanes, seconds)
    return costs


def test_a_guess_before_anything_was_measured() -> None:
    assert CostTable().seconds(KEY, 3) == 3 * FIRST_GUESS_S


def test_a_measurement_is_believed_and_belongs_to_its_key() -> None:
    costs = table({4: 2.0})
    assert costs.seconds(KEY, 4) == 2.0
    assert costs.seconds(OTHER, 4) == 4 * FIRST_GUESS_S


def test_later_measurements_move_it_slowly() -> None:
    costs = table({4: 2.0})
    costs.measured(KEY, 4, 3.0)
    assert costs.seconds(KEY, 4) == pytest.approx(2.0 + SMOOTHING)
    for _ in range(100):
        costs.measured(KEY, 4, 3.0)
    assert costs.seconds(KEY, 4) == pytest.approx(3.0)


def test_between_two_sizes_it_interpolates() -> None:
    assert table({2: 1.0, 8: 4.0, 16: 100.0}).seconds(KEY, 4) == pytest.approx(2.0)


def test_beyond_the_largest_it_grows_in_proportion() -> None:
    assert table({2: 1.0, 8: 4.0}).seconds(KEY, 16) == pytest.approx(8.0)


def test_below_the_smallest_it_promises_nothing() -> None:
    assert table({8: 4.0, 16: 6.0}).seconds(KEY, 1) == 4.0


@given(st.dictionaries(st.integers(1, 32), st.floats(1e-6, 100.0)), st.integers(1, 64))
def test_predictions_are_positive_and_within_what_was_seen(known: dict[int, float], lanes: int) -> None:
    seconds = table(known).seconds(KEY, lanes)
    assert seconds > 0
    if known and lanes <= max(known):
        assert min(known.values()) * (1 - 1e-9) <= seconds <= max(known.values()) * (1 + 1e-9)
