"""The choice of the next batch: bounds, order, and that nothing starves, shown by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.job import Adapter, Priority
from service.worker.batch import (
    CHEAP,
    CLASS_WEIGHT,
    CRITICAL_WEIGHT,
    HEAD_START,
    MAX_HEAD_START,
    PRESSING,
    Batch,
    BatchKey,
    Costs,
    Item,
    Limits,
    Stage,
    next_batch,
    rank,
    weight,
)
from service.worker.memory import TENURE, Home, Memory

Policy = Callable[[Sequence[Item], Costs, Limits, float], Batch | None]


@dataclass(frozen=True)
class Linear:
    """A fixed price and a price a lane, different for each network."""

    fixed_s: float = 0.1

    def seconds(self, key: BatchKey, lanes: int) -> float:
        return (self.fixed_s + 0.1 * lanes) * len(key.network)


def make_key(network: str = "u", max_lanes: int = 8) -> BatchKey:
    return BatchKey(Stage.DENOISE, "model", network, (4, 8, 8), 7, "id", max_lanes)


def make_item(
    row: int, key: BatchKey, lanes: int = 2, evaluations: int = 10, arrived_at: float = 0.0, **fields: Any
) -> Item:
    return Item(row, key, lanes, evaluations, arrived_at, **fields)


KEYS = st.builds(make_key, st.sampled_from(["u", "uu", "uuu"]), st.sampled_from([1, 4, 8]))
ITEMS = st.lists(
    st.builds(
        make_item,
        st.just(0),
        KEYS,
        st.integers(1, 3),
        st.integers(1, 30),
        st.floats(0, 100),
        priority=st.sampled_from(list(Priority)),
        deadline_at=st.none() | st.floats(0, 1000),
    ),
    max_size=30,
).map(lambda items: [replace(item, row=row) for row, item in enumerate(items)])
LIMITS = st.builds(Limits, st.sampled_from([0.05, 0.5, 1.0, 100.0]))


def test_nothing_waits() -> None:
    assert next_batch([], Linear(), Limits(), 0.0) is None


def test_equal_keys_share_a_batch() -> None:
    items = [make_item(row, make_key()) for row in range(3)]
    assert next_batch(items, Linear(), Limits(), 1.0) == Batch(make_key(), (0, 1, 2), 6)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": Stage.DECODE},
        {"model": "m"},
        {"network": "v"},
        {"shape": (4, 8, 4)},
        {"tokens": 8},
        {"numerics_id": "n"},
        {"adapters": (Adapter(name="ink"),)},
    ],
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
    item = make_item(7, make_key(max_lanes=1))
    assert next_batch([item], Linear(), Limits(0.01), 1.0) == Batch(item.key, (7,), 1)


def test_short_work_overtakes_long_work_and_long_work_comes_back() -> None:
    long, short = make_item(0, make_key("u"), evaluations=100), make_item(1, make_key("v"), evaluations=1)
    batch = next_batch([long, short], Linear(), Limits(), 1.0)
    assert batch is not None and batch.rows == (1,)
    for now, leads in ((200.0, 1), (220.0, 0)):  # (a head start of 30.3 s + waited) / 30 s of work reaches 8
        newcomer = replace(short, arrived_at=now)
        batch = next_batch([long, newcomer], Linear(), Limits(), now)
        assert batch is not None and batch.rows == (leads,)


def test_equal_ranks_are_served_in_the_order_of_arrival_and_then_of_rows() -> None:
    items = [make_item(row, make_key(max_lanes=2), arrived_at=at) for row, at in [(0, 5.0), (1, 4.0), (2, 4.0)]]
    batch = next_batch(items, Linear(), Limits(), 3.0)  # a clock that was set back: nobody has waited
    assert batch is not None and batch.rows == (1,)


def test_rank() -> None:
    assert rank(1.0, 0.0, 1.0, 1.0) == HEAD_START
    assert rank(1.0, 2.0, 1.0, 1.0) == HEAD_START + 2.0
    assert rank(4.0, 2.0, 1.0, 1.0) == 4.0 * (HEAD_START + 2.0)
    assert rank(1.0, 0.0, 10.0, 1.0) == HEAD_START / 10.0, "long work has the head start of all"
    assert rank(1.0, 0.0, 0.001, 1.0) == MAX_HEAD_START, "that of short work is bounded"
    assert rank(1.0, -10.0, 1.0, 1.0) == HEAD_START, "a clock that was set back"


def test_an_urgent_class_leads_until_the_other_has_waited_long_for_its_work() -> None:
    batch_job = make_item(0, make_key("u"), lanes=1, evaluations=1, priority=Priority.BATCH)  # 0.2 s of work
    for waited_s, leads in ((5.9, 1), (6.1, 0)):  # 15 times the head start
        fresh = make_item(1, make_key("v"), 1, 1, arrived_at=waited_s, priority=Priority.INTERACTIVE)
        chosen = next_batch([batch_job, fresh], Linear(), Limits(), waited_s)
        assert chosen is not None and chosen.rows == (leads,)


def test_a_deadline_leads_while_it_is_at_stake() -> None:
    limits = Limits(1.0)
    item = make_item(0, make_key("u"), 1, 10, deadline_at=10.0)  # 2 s of work, and 1 s for whoever runs now
    assert weight(item, 2.0, limits, 4.9) == CLASS_WEIGHT[item.priority]
    assert weight(item, 2.0, limits, 5.1) == CRITICAL_WEIGHT
    assert weight(item, 2.0, limits, 10.0) == CRITICAL_WEIGHT
    assert weight(item, 2.0, limits, 10.1) == CLASS_WEIGHT[item.priority], "it is missed: nothing is at stake"
    other = make_item(1, make_key("v"), 1, 10)
    for now, leads in ((4.9, (1,)), (5.1, (0,))):
        late = replace(item, arrived_at=now - 0.1)
        chosen = next_batch([late, other], Linear(), limits, now)
        assert chosen is not None and chosen.rows == leads


@pytest.mark.parametrize(
    ("left", "fixed_s", "rows"),
    [(16, 0.05, (1, 0)), (17, 0.05, (1,)), (17, 0.4, (1, 0)), (1, 0.05, (1, 0))],
    ids=["not much longer", "longer by far", "costs little", "as short"],
)
def test_long_work_does_not_hold_up_short_work(left: int, fixed_s: float, rows: tuple[int, ...]) -> None:
    key = make_key()
    long, short = (make_item(row, key, 2, evaluations) for row, evaluations in enumerate((left, 4)))
    waited = replace(short, arrived_at=-10.0)
    chosen = next_batch([long, waited], Linear(fixed_s), Limits(), 0.0)
    assert chosen is not None and chosen.rows == rows
    chosen = next_batch([replace(long, arrived_at=-1000.0), short], Linear(fixed_s), Limits(), 0.0)
    assert chosen is not None and chosen.rows == (0, 1), "short work goes along wherever it fits"


def test_a_class_that_can_wait_does_not_hold_up_one_that_cannot() -> None:
    key = make_key()
    for other, rows in ((Priority.STANDARD, (0, 1)), (Priority.BATCH, (0,))):
        items = [make_item(0, key, priority=Priority.INTERACTIVE), make_item(1, key, priority=other)]
        chosen = next_batch(items, Linear(0.05), Limits(), 0.0)
        assert chosen is not None and chosen.rows == rows


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
    asked = sum(item.lanes for item in chosen)
    if batch.lanes < asked:
        assert len(chosen) == 1 and batch.lanes >= 1, "a part of one item"
        assert asked > batch.key.max_lanes or costs.seconds(batch.key, asked) > limits.max_seconds
        return
    assert batch.lanes == asked
    if len(chosen) > 1:
        assert batch.lanes <= batch.key.max_lanes
        assert costs.seconds(batch.key, batch.lanes) <= limits.max_seconds

    def pressing(item: Item) -> float:
        left_s = item.evaluations * costs.seconds(item.key, item.lanes)
        return weight(item, left_s, limits, now) / left_s

    # Nobody who would still fit is left behind, but who presses little and would cost much.
    for item in items:
        if item.key == batch.key and item.row not in batch.rows:
            lanes = batch.lanes + item.lanes
            fits = lanes <= batch.key.max_lanes and costs.seconds(batch.key, lanes) <= limits.max_seconds
            more_s = costs.seconds(batch.key, lanes) - costs.seconds(batch.key, batch.lanes)
            dear = more_s > CHEAP * costs.seconds(item.key, item.lanes) * (1 - 1e-9)
            assert not fits or (dear and pressing(chosen[0]) > PRESSING * pressing(item))


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
    priority: Priority = Priority.STANDARD
    deadline_s: float | None = None

    def item(self, row: int, now: float) -> Item:
        deadline_at = None if self.deadline_s is None else now + self.deadline_s
        return Item(row, self.key, self.lanes, self.evaluations, now, self.priority, deadline_at)


@dataclass(frozen=True)
class Mix:
    """A watched item, and neighbours who are each replaced as soon as they are done: a queue that never empties."""

    watched: Kind
    neighbours: tuple[Kind, ...]
    limits: Limits

    def bound_s(self, costs: Costs) -> float:
        """Seconds within which ranks finish the watched item.

        With weights w of the watched item and at most W of the others, least and largest work left s and L, and H the
        most of a head start: who came after b(t) = t - s (w / W (t - a) / L - H) has waited too short to pass, at time
        t, the one watched since a. So whoever leads from b(t) to t was there at b(t), and each of these N leads for at
        most E passes of at most P seconds: t - b(t) <= N E P. A step may be a pass for each of its lanes.
        """
        kinds = (self.watched, *self.neighbours)
        alone = [costs.seconds(kind.key, kind.lanes) for kind in kinds]
        longest = max(kind.evaluations * s for kind, s in zip(kinds, alone, strict=True))
        passes = max(kind.evaluations * kind.lanes for kind in kinds)
        passes_s = len(kinds) * passes * max(self.limits.max_seconds, *alone)
        weights = [CLASS_WEIGHT[kind.priority] if kind.deadline_s is None else CRITICAL_WEIGHT for kind in kinds]
        shortest = min(costs.seconds(kind.key, 1) for kind in kinds)
        return longest * max(weights) / weights[0] * (passes_s / shortest + MAX_HEAD_START)


def served_in_time(mix: Mix, policy: Policy, costs: Costs) -> bool:
    """Run the mix until its watched item is done or its time is up."""
    numbers, now, bound_s = itertools.count(1), 0.0, mix.bound_s(costs)
    waiting = {0: mix.watched.item(0, now)}
    kinds = {next(numbers): kind for kind in mix.neighbours}
    waiting |= {row: kind.item(row, now) for row, kind in kinds.items()}
    while now <= bound_s:
        batch = policy(list(waiting.values()), costs, mix.limits, now)
        assert batch is not None
        now += costs.seconds(batch.key, batch.lanes)
        for row in batch.rows:
            item = waiting.pop(row)
            kind = kinds[row] if row else mix.watched
            if len(batch.rows) == 1 and batch.lanes < item.lanes:
                waiting[row] = replace(item, lanes=item.lanes - batch.lanes)
            elif item.evaluations > 1:
                waiting[row] = replace(item, evaluations=item.evaluations - 1, lanes=kind.lanes)
            elif row == 0:
                return now <= bound_s
            else:
                successor = next(numbers)
                kinds[successor] = kinds.pop(row)
                waiting[successor] = kinds[successor].item(successor, now)
    return False


def shortest_first(items: Sequence[Item], costs: Costs, limits: Limits, now: float) -> Batch | None:
    """The control: the least work left leads, however long the others have waited."""
    waited_alike = [replace(item, arrived_at=-1e6) for item in items]
    return next_batch(waited_alike, costs, limits, 0.0)


def strict_classes(items: Sequence[Item], costs: Costs, limits: Limits, now: float) -> Batch | None:
    """Another: a class leads for as long as it has work."""
    best = max(CLASS_WEIGHT[item.priority] for item in items)
    return next_batch([item for item in items if CLASS_WEIGHT[item.priority] == best], costs, limits, now)


def make_kind(key: BatchKey, lanes: int, evaluations: int, priority: Priority) -> Kind:
    return Kind(key, lanes, evaluations, priority)


KIND = st.builds(make_kind, KEYS, st.integers(1, 3), st.integers(1, 6), st.sampled_from(list(Priority)))
NEIGHBOURS = st.lists(st.builds(replace, KIND, deadline_s=st.none() | st.sampled_from([0.5, 3.0])), max_size=5)
MIXES = st.builds(Mix, KIND, NEIGHBOURS.map(tuple), st.builds(Limits, st.sampled_from([0.3, 1.0])))


@given(MIXES)
def test_no_mix_starves_anyone(mix: Mix) -> None:
    assert served_in_time(mix, next_batch, Linear())


@pytest.mark.parametrize("policy", [shortest_first, strict_classes])
def test_controls_starve_in_the_same_simulation(policy: Policy) -> None:
    long = Kind(make_key("uuu"), 2, 6, Priority.BATCH)
    short = Kind(make_key("u"), 1, 1, Priority.INTERACTIVE)
    mix = Mix(long, (short, short), Limits())
    assert not served_in_time(mix, policy, Linear())
    assert served_in_time(mix, next_batch, Linear())


def clip(lanes: int = 2, max_lanes: int = 8) -> Item:
    return make_item(0, make_key("uuuu", max_lanes), lanes)  # 0.4 s and 0.4 s a lane


def test_the_lanes_of_a_step_that_is_too_long_run_in_passes() -> None:
    neighbour = make_item(1, clip().key, arrived_at=1.0)
    whole = next_batch([clip(), neighbour], Linear(), Limits(2.0), 1.0)
    assert whole == Batch(clip().key, (0, 1), 4)
    assert next_batch([clip(), neighbour], Linear(), Limits(1.0), 1.0) == Batch(clip().key, (0,), 1)
    assert next_batch([clip(4)], Linear(), Limits(1.3), 1.0) == Batch(clip().key, (0,), 2), "the most that fit"
    assert next_batch([clip()], Linear(), Limits(0.1), 1.0) == Batch(clip().key, (0,), 1), "one, if none fits"
    decoded = replace(clip(), key=replace(clip().key, stage=Stage.DECODE))
    assert next_batch([decoded], Linear(), Limits(1.0), 1.0) == Batch(decoded.key, (0,), 2), "no other stage"


def test_nothing_is_divided_where_fewer_lanes_take_as_long() -> None:
    class Padded:
        def seconds(self, key: BatchKey, lanes: int) -> float:
            return 5.0

    assert next_batch([clip()], Padded(), Limits(1.0), 1.0) == Batch(clip().key, (0,), 2)


def home(size: int = 4, since: float | None = None, used_at: float = 0.0, load_s: float = 2.0) -> Home:
    return Home(size, load_s, since, used_at, switch_s=load_s)


def of(model: str, row: int, stage: Stage = Stage.ENCODE, arrived_at: float = 0.0, **fields: Any) -> Item:
    """A row of a model of two networks, the second of which is its own."""
    key = replace(make_key(), stage=stage, model=model)
    needs, keeps = (("text",), (model,)) if stage is Stage.ENCODE else ((model,), ())
    return make_item(row, key, 1, 1, arrived_at, **{"needs": needs, "keeps": keeps, **fields})


def with_room_for_one(**changes: Home) -> Memory:
    """Model a came at 0 and ran since; b and c are on disk."""
    homes = {"text": home(1, 0.0, 1.0), "a": home(4, 0.0, 1.0), "b": home(), "c": home()}
    return Memory({**homes, **changes}, limit_bytes=5)


def choose(items: list[Item], memory: Memory, now: float = 1.0) -> Batch | None:
    return next_batch(items, Linear(), Limits(), now, resident=memory)


def test_what_is_not_in_memory_is_loaded_once_for_all_that_wait() -> None:
    batch = choose([of("b", 0), of("b", 1)], Memory({"text": home(1), "b": home()}))
    assert batch is not None and batch.key.stage is Stage.LOAD and batch.key.model == "b"
    assert batch.load == ("b", "text") and batch.evict == () and batch.rows == (0, 1)


def test_a_load_that_displaces_no_work_begins_at_once_and_beside_it() -> None:
    waiting = [of("a", 0, arrived_at=-1000.0), of("b", 1)]
    roomy = replace(with_room_for_one(), limit_bytes=9)
    batch = choose(waiting, roomy)
    assert batch is not None and batch.load == ("b",) and batch.evict == ()
    batch = choose(waiting, replace(roomy, loading=frozenset({"b"})))
    assert batch is not None and batch.rows == (0,), "work goes on meanwhile"
    assert choose(waiting[1:], replace(roomy, loading=frozenset({"b"}))) is None
    idle = choose(waiting[1:], with_room_for_one())
    assert idle is not None and idle.load == ("b",) and idle.evict == ("a",), "a has no work, whatever its tenure"


def test_a_network_with_work_keeps_its_place_for_its_tenure() -> None:
    waiting = [of("a", 0, arrived_at=9.0), of("b", 1, arrived_at=-1000.0)]
    end = TENURE * 2.0
    before, after = (choose(waiting, with_room_for_one(), now) for now in (end - 0.1, end))
    assert before is not None and before.rows == (0,) and not before.load
    assert after is not None and after.load == ("b",) and after.evict == ("a",)
    newcomer = [replace(waiting[0], arrived_at=-1000.0), replace(waiting[1], arrived_at=9.0)]
    batch = choose(newcomer, with_room_for_one(), end)
    assert batch is not None and not batch.load, "its turn to lead has to come as well"


def test_a_deadline_at_stake_ends_a_tenure_but_what_was_loaded_runs_once() -> None:
    waiting = [of("a", 0), of("b", 1, deadline_at=6.0)]
    batch = choose(waiting, with_room_for_one(), 2.0)
    assert batch is not None and batch.evict == ("a",)
    batch = choose(waiting, with_room_for_one(a=home(4, 1.5, 1.0)), 2.0)
    assert batch is not None and batch.rows == (0,)


def test_begun_rows_keep_their_networks_and_no_new_ones_begin() -> None:
    after = TENURE * 2.0
    waiting = [of("b", 0, arrived_at=-1000.0), of("a", 1, arrived_at=9.0), of("a", 2, Stage.DECODE, arrived_at=9.5)]
    batch = choose(waiting, with_room_for_one(), after)
    assert batch is not None and batch.rows == (2,)
    batch = choose(waiting[:2], with_room_for_one(), after)
    assert batch is not None and batch.load == ("b",) and batch.evict == ("a",)


def test_loads_that_could_block_each_other_do_not() -> None:
    # Parts of two models are in memory, neither can run, and each wants the room of the other's part.
    homes = {"b": home(4), "c": home(4), "b2": home(2, 5.0), "c2": home(2, 5.0)}
    rows = [of("b", 0, needs=("b", "b2"), keeps=()), of("c", 1, Stage.DENOISE, needs=("c", "c2"), keeps=())]
    batch = choose(rows, Memory(homes, limit_bytes=6), 6.0)
    assert batch is not None and batch.load and batch.evict


def test_a_model_without_room_for_all_of_it_runs_stage_by_stage() -> None:
    homes = {"text": home(4, 0.0, 1.0), "a": home(4)}
    batch = choose([of("a", 0)], Memory(homes, limit_bytes=5))
    assert batch is not None and batch.rows == (0,) and not batch.load
    batch = choose([of("a", 0, Stage.DENOISE)], Memory(homes, limit_bytes=5))
    assert batch is not None and batch.load == ("a",) and batch.evict == ("text",)
