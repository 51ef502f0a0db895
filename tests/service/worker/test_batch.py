"""The choice of the next batch: bounds, order, and that nothing starves, shown by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker.batch import Batch, BatchKey, Costs, Item, Limits, Stage, next_batch, response_ratio

Policy = Callable[[Sequence[Item], Costs, Limits, float], Batch | None]


@dataclass(frozen=True)
class Linear:
    """A fixed price and a price a lane, different for each network."""

    fixed_s: float = 0.1

    def seconds(self, key: BatchKey, lanes: int) -> float:
        return (self.fixed_s + 0.1 * lanes) * len(key.network)


def make_key(network: str = "u", max_lanes: int = 8) -> BatchKey:
    return BatchKey(Stage.DENOISE, "model", network, (4, 8, 8), 7, "id", max_lanes)


def make_item(row: int, key: BatchKey, lanes: int = 2, evaluations: int = 10, arrived_at: float = 0.0) -> Item:
    return Item(row, key, lanes, evaluations, arrived_at)


KEYS = st.builds(make_key, st.sampled_from(["u", "uu", "uuu"]), st.sampled_from([1, 4, 8]))
ITEMS = st.lists(
    st.builds(make_item, st.just(0), KEYS, st.integers(1, 3), st.integers(1, 30), st.floats(0, 100)), max_size=30
).map(lambda items: [replace(item, row=row) for row, item in enumerate(items)])
LIMITS = st.builds(Limits, st.sampled_from([0.05, 0.5, 1.0, 100.0]))


def test_nothing_waits() -> None:
    assert next_batch([], Linear(), Limits(), 0.0) is None


def test_equal_keys_share_a_batch() -> None:
    items = [make_item(row, make_key()) for row in range(3)]
    assert next_batch(items, Linear(), Limits(), 1.0) == Batch(make_key(), (0, 1, 2), 6)


@pytest.mark.parametrize(
    "change", [{"stage": Stage.DECODE}, {"model": "m"}, {"network": "v"}, {"shape": (4, 8, 4)}, {"numerics_id": "n"}]
)
def test_every_field_of_the_key_keeps_items_apart(change: dict[str, object]) -> None:
    other = replace(make_key(), **change)  # type: ignore[arg-type]
    batch = next_batch([make_item(0, make_key()), make_item(1, other)], Linear(), Limits(), 1.0)
    assert batch is not None and len(batch.rows) == 1


def test_a_batch_ends_at_the_lanes_of_its_key() -> None:
    items = [make_item(row, make_key(max_lanes=5), arrived_at=row) for row in range(4)]
    batch = next_batch(items, Linear(), Limits(100.0), 10.0)
    assert batch is not None and batch.rows == (0, 1) and batch.lanes == 4


def test_a_narrow_item_fills_the_place_that_a_wide_one_leaves() -> None:
    key = make_key(max_lanes=5)
    items = [make_item(row, key, lanes, arrived_at=row) for row, lanes in enumerate([2, 2, 2, 1])]
    batch = next_batch(items, Linear(), Limits(100.0), 10.0)
    assert batch is not None and set(batch.rows) == {0, 1, 3} and batch.lanes == 5


def test_a_batch_ends_at_its_seconds() -> None:
    items = [make_item(row, make_key()) for row in range(4)]
    batch = next_batch(items, Linear(), Limits(0.55), 1.0)  # 0.1 s and 0.1 s a lane: four lanes
    assert batch is not None and batch.lanes == 4


def test_a_single_item_may_exceed_the_limits() -> None:
    item = make_item(7, make_key(max_lanes=1), lanes=2)
    assert next_batch([item], Linear(), Limits(0.01), 1.0) == Batch(item.key, (7,), 2)


def test_short_work_overtakes_long_work_and_long_work_comes_back() -> None:
    long, short = make_item(0, make_key("u"), evaluations=100), make_item(1, make_key("v"), evaluations=1)
    batch = next_batch([long, short], Linear(), Limits(), 1.0)
    assert batch is not None and batch.rows == (1,)
    newcomer = replace(short, arrived_at=99.9)
    batch = next_batch([long, newcomer], Linear(), Limits(), 100.0)
    assert batch is not None and batch.rows == (0,)


def test_equal_ratios_are_served_in_the_order_of_arrival_and_then_of_rows() -> None:
    items = [make_item(row, make_key(max_lanes=2), arrived_at=at) for row, at in [(0, 5.0), (1, 4.0), (2, 4.0)]]
    batch = next_batch(items, Linear(), Limits(), 3.0)  # a clock that was set back: nobody has waited
    assert batch is not None and batch.rows == (1,)


def test_response_ratio() -> None:
    item = make_item(0, make_key(), lanes=1, evaluations=5, arrived_at=10.0)
    assert response_ratio(item, Linear(), 10.0) == 1.0
    assert response_ratio(item, Linear(), 12.0) == pytest.approx(3.0)
    assert response_ratio(item, Linear(), 0.0) == 1.0


@given(ITEMS, LIMITS, st.floats(0, 1000))
def test_bounds_hold_for_every_mix(items: list[Item], limits: Limits, now: float) -> None:
    costs = Linear()
    batch = next_batch(items, costs, limits, now)
    assert (batch is None) == (not items)
    if batch is None:
        return
    chosen = [items[row] for row in batch.rows]
    assert len(set(batch.rows)) == len(batch.rows) >= 1
    assert all(item.key == batch.key for item in chosen)
    assert batch.lanes == sum(item.lanes for item in chosen)
    if len(chosen) > 1:
        assert batch.lanes <= batch.key.max_lanes
        assert costs.seconds(batch.key, batch.lanes) <= limits.max_seconds
    # Nobody who would still fit is left behind.
    for item in items:
        if item.key == batch.key and item.row not in batch.rows:
            lanes = batch.lanes + item.lanes
            assert lanes > batch.key.max_lanes or costs.seconds(batch.key, lanes) > limits.max_seconds


@given(ITEMS, LIMITS, st.floats(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_the_items_says_nothing(items: list[Item], limits: Limits, now: float, random: object) -> None:
    first = next_batch(items, Linear(), limits, now)
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert next_batch(shuffled, Linear(), limits, now) == first == next_batch(items, Linear(), limits, now)


@dataclass(frozen=True)
class Kind:
    """Work as a place of the closed system brings it again and again."""

    key: BatchKey
    lanes: int
    evaluations: int

    def item(self, row: int, now: float) -> Item:
        return Item(row, self.key, self.lanes, self.evaluations, now)


@dataclass(frozen=True)
class Mix:
    """A watched item, and neighbours who are each replaced as soon as they are done: a queue that never empties."""

    watched: Kind
    neighbours: tuple[Kind, ...]
    limits: Limits

    def bound_s(self, costs: Costs) -> float:
        """Seconds within which response ratios finish the watched item.

        An item that came after b(t) = t - (s / L) (t - a) has waited too short to pass, at time t, the one watched
        since a: s is the least and L the largest work left of any. So whoever leads from b(t) to t was there at b(t),
        and each of these N leads for at most E passes of at most P seconds: (s / L) (t - a) <= N E P.
        """
        kinds = (self.watched, *self.neighbours)
        alone = [costs.seconds(kind.key, kind.lanes) for kind in kinds]
        longest = max(kind.evaluations * s for kind, s in zip(kinds, alone, strict=True))
        passes = len(kinds) * max(kind.evaluations for kind in kinds)
        return passes * max(self.limits.max_seconds, *alone) * longest / min(alone)


def served_in_time(mix: Mix, policy: Policy, costs: Costs) -> bool:
    """Run the mix until its watched item is done or its time is up."""
    numbers, now = itertools.count(1), 0.0
    waiting = {0: mix.watched.item(0, now)}
    kinds = {next(numbers): kind for kind in mix.neighbours}
    waiting |= {row: kind.item(row, now) for row, kind in kinds.items()}
    while now <= mix.bound_s(costs):
        batch = policy(list(waiting.values()), costs, mix.limits, now)
        assert batch is not None
        now += costs.seconds(batch.key, batch.lanes)
        for row in batch.rows:
            item = waiting.pop(row)
            if item.evaluations > 1:
                waiting[row] = replace(item, evaluations=item.evaluations - 1)
            elif row == 0:
                return now <= mix.bound_s(costs)
            else:
                successor = next(numbers)
                kinds[successor] = kinds.pop(row)
                waiting[successor] = kinds[successor].item(successor, now)
    return False


def shortest_first(items: Sequence[Item], costs: Costs, limits: Limits, now: float) -> Batch | None:
    """The control: the least work left leads, however long the others have waited."""
    waited_alike = [replace(item, arrived_at=-1.0) for item in items]  # the ratio is 1 + 1 / work left
    return next_batch(waited_alike, costs, limits, 0.0)


KIND = st.builds(Kind, KEYS, st.integers(1, 3), st.integers(1, 6))
MIXES = st.builds(Mix, KIND, st.lists(KIND, max_size=6).map(tuple), st.builds(Limits, st.sampled_from([0.3, 1.0])))


@given(MIXES)
def test_no_mix_starves_anyone(mix: Mix) -> None:
    assert served_in_time(mix, next_batch, Linear())


def test_shortest_first_starves_in_the_same_simulation() -> None:
    long, short = Kind(make_key("uuu"), 2, 6), Kind(make_key("u"), 1, 1)
    mix = Mix(long, (short, short), Limits())
    assert not served_in_time(mix, shortest_first, Linear())
    assert served_in_time(mix, next_batch, Linear())
