"""What the cost table predicts from what it was told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker import cost
from service.worker.batch import BatchKey, Stage
from service.worker.cost import FIRST_GUESS_S, SMOOTHING, CostTable, JobPrices

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


def test_the_first_measurements_count_equally_and_later_ones_move_it_slowly() -> None:
    costs = table({4: 20.0})  # the first pass of a shape is slow
    for seconds in (2.0, 2.0, 2.0):
        costs.measured(KEY, 4, seconds)
    assert costs.seconds(KEY, 4) == pytest.approx((20.0 + 3 * 2.0) / 4)
    for _ in range(100):
        costs.measured(KEY, 4, 2.0)
    costs.measured(KEY, 4, 3.0)
    assert costs.seconds(KEY, 4) == pytest.approx(2.0 + SMOOTHING)


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


def test_a_new_shape_is_priced_from_the_nearest_by_pixels_and_frames() -> None:
    costs = table({2: 1.0})
    costs.measured(replace(KEY, shape=(4, 64, 64)), 2, 500.0)
    assert costs.seconds(replace(KEY, shape=(4, 8, 16)), 2) == pytest.approx(2.0)
    assert costs.seconds(replace(KEY, shape=(4, 4, 8)), 4) == pytest.approx(1.0), "half the pixels, twice the lanes"
    assert costs.seconds(replace(KEY, shape=(4, 64, 128)), 2) == pytest.approx(1000.0)
    assert costs.seconds(replace(KEY, tokens=9), 2) == 1.0
    frames = replace(KEY, network="video", shape=(14, 4, 8, 8))
    costs.measured(frames, 2, 7.0)
    assert costs.seconds(replace(frames, shape=(25, 4, 8, 8)), 2) == pytest.approx(12.5)
    assert costs.seconds(replace(KEY, numerics_id="other"), 2) == 2 * FIRST_GUESS_S, "padding may differ"


def test_a_load_has_no_shape() -> None:
    assert CostTable().seconds(replace(KEY, stage=Stage.LOAD, shape=()), 1) == FIRST_GUESS_S
    costs = table({1: 1.0})
    assert costs.seconds(replace(KEY, shape=()), 1) == pytest.approx(1 / 64)


def test_a_bound_on_lanes_changes_no_price() -> None:
    bounded = replace(KEY, max_lanes=4)
    costs = table({4: 2.0})
    assert costs.seconds(bounded, 4) == 2.0
    costs.measured(bounded, 4, 4.0)
    assert costs.seconds(KEY, 4) == pytest.approx(3.0)


def test_predictions_are_compared_with_what_came() -> None:
    told: list[tuple[Stage, float]] = []
    costs = CostTable(lambda stage, ratio: told.append((stage, ratio)))
    costs.measured(KEY, 1, 2 * FIRST_GUESS_S)
    costs.measured(KEY, 1, FIRST_GUESS_S)
    assert told == [(Stage.DENOISE, pytest.approx(0.5)), (Stage.DENOISE, pytest.approx(2.0))]


def test_a_bounded_number_of_shapes_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MAX_KEYS", 3)
    costs = CostTable()
    costs.measured(OTHER, 1, 0.5)
    for height in (1, 2):
        costs.measured(replace(KEY, shape=(4, height, 8)), 1, height)
    costs.measured(OTHER, 1, 0.5)  # seen again
    costs.measured(replace(KEY, shape=(4, 4, 8)), 1, 8.0)
    assert costs.seconds(OTHER, 1) == 0.5
    assert costs.seconds(replace(KEY, shape=(4, 1, 8)), 1) == pytest.approx(1.0), "forgotten: half of the next one"
    for height in (8, 16, 32):
        costs.measured(replace(KEY, shape=(4, height, 8)), 1, 1.0)
    assert costs.seconds(OTHER, 1) == FIRST_GUESS_S


def test_jobs_share_what_their_passes_took() -> None:
    prices = JobPrices()
    prices.spent("a", 3.0)
    assert prices.seconds_per_job == {}
    prices.ended("a")
    assert prices.seconds_per_job == {"a": pytest.approx(3.0)}
    for _ in range(200):
        prices.spent("a", 2.0)  # two jobs a pass
        prices.ended("a")
        prices.ended("a")
    prices.ended("b")
    assert prices.seconds_per_job == {"a": pytest.approx(1.0, rel=0.05)}, "nothing is known of b"
