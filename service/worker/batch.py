"""Which work runs next: one pure function over everything that waits. No torch, no clock, no store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Protocol

from service.jobs.job import Adapter, Priority
from service.worker.memory import Memory

CLASS_WEIGHT = {Priority.INTERACTIVE: 16.0, Priority.STANDARD: 4.0, Priority.BATCH: 1.0}
"""By how much the rank of a class counts. Bounded, so that no class can starve another: however short fresh interactive
work is, a batch item leads it once it has waited 128 times its own work, the weights' ratio times the head start."""
HEAD_START = 2.0
"""What waits is ranked as if it had waited before, for so many times the mean of the work that is left: without that,
short work would queue behind long work until it has waited for its own length."""
MAX_HEAD_START = 8.0
"""And for at most so many times its own work: else the shortest would nearly always be first."""
CRITICAL_WEIGHT = 64.0
"""What counts in place of the class while a deadline is at stake. Bounded as well: were it a strict precedence, a
stream of deadlines would starve everything else."""
CRITICAL_MARGIN = 2.0
"""A deadline is at stake when less time is left than so many times the work. Twice: the work is predicted as if it ran
alone, and it shares the device."""

CHEAP = 0.5
"""A row in a pass is cheap when it lengthens the pass by less than this part of what it takes alone."""
PRESSING = 4.0
"""A pass is kept free of rows, unless they are cheap, than which one in it presses so many times more: four steps that
share every pass with forty take nearly as long as eight, and the forty gain little."""


class Stage(StrEnum):
    """The kinds of work a row goes through. Networks that are not in memory are loaded before any of them."""

    LOAD = "load"
    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True)
class BatchKey:
    """Items of equal keys can share one forward pass."""

    stage: Stage
    model: str
    network: str
    """The network that runs: a plan line's name, its variants joined by "+", or the stage's own."""
    shape: tuple[int, ...]
    """Latent channels, height and width; of a clip the frames of one pass before them."""
    tokens: int
    """Length of the context; 0 outside the denoiser."""
    numerics_id: str
    max_lanes: int
    """Lanes of the largest batch of this key."""
    adapters: tuple[Adapter, ...] = ()
    """What is fused into the network."""


@dataclass(frozen=True)
class Item:
    """The next piece of work of one row."""

    row: int
    """The caller's name for the row."""
    key: BatchKey
    lanes: int
    """Lanes that this evaluation still has to run. Those of a step may run in several passes, one after the other."""
    evaluations: int
    """Forward passes until this stage is over, this one included: the steps left, or 1."""
    arrived_at: float
    """When the row's job was accepted, in the seconds of ``now``."""
    priority: Priority = Priority.STANDARD
    deadline_at: float | None = None
    needs: tuple[str, ...] = ()
    """Identities of the networks that this piece of work runs on."""
    keeps: tuple[str, ...] = ()
    """Identities of the networks of the row's later stages."""

    @property
    def begun(self) -> bool:
        """Whether the row has been encoded: its networks stay until it is done."""
        return self.key.stage is not Stage.ENCODE


@dataclass(frozen=True)
class Limits:
    """Bounds of every batch."""

    max_seconds: float = 1.0
    """No batch is predicted to hold the device longer, unless a single pass of a single item does."""


@dataclass(frozen=True)
class Batch:
    """Rows to run together; or, of the stage LOAD, what they wait for."""

    key: BatchKey
    rows: tuple[int, ...]
    lanes: int
    """Lanes to run. Fewer than the item has when it was divided: then it is the only one."""
    load: tuple[str, ...] = ()
    """Networks to bring into memory, beside the loop."""
    evict: tuple[str, ...] = ()
    """Networks to drop first."""


class Costs(Protocol):
    """What is known of the price of work."""

    def seconds(self, key: BatchKey, lanes: int) -> float:
        """Predicted seconds of one forward pass of ``lanes`` lanes, positive."""


EVERYTHING = Memory()
"""For items that name no networks: all they need is there."""


def next_batch(
    items: Sequence[Item], costs: Costs, limits: Limits, now: float, *, resident: Memory = EVERYTHING
) -> Batch | None:
    """Choose what runs next; None when nothing waits, or everything waits for a load that is under way.

    The item of the highest rank leads, weight * (head start + waited) / work left: the response ratio of Brinch Hansen
    (1971), but with a head start of about the same length for all in place of each one's own work. The items of its key
    follow in the same order while the batch stays within the limits. Short work overtakes long work, and long work
    cannot starve: its rank grows for as long as it waits, and the head start of short work and weights are bounded.
    What presses less than the leader by far, weight / work left, stays out of its pass unless it costs little there.

    Work whose networks are not in memory becomes a load. Loads run beside the loop, one at a time, and at once when
    nothing that has work must leave for them. Else the load waits for its turn to lead, for the tenure of what has to
    leave (unless a deadline is at stake; but what was loaded runs at least once), and until no begun row needs it:
    meanwhile no new row that needs it is begun.

    Args:
        items: the next piece of work of every row.
        costs: prices of passes.
        limits: bounds of the batch.
        now: the time, in the seconds of the items.
        resident: what is in memory. It knows every network that an item names.
    """
    if not items:
        return None
    queue = _Queue(items, costs, limits, now, resident)
    loads = {} if resident.loading else {item: queue.victims(item) for item in queue.leaders_of_loads()}
    for item, victims in loads.items():
        if victims is not None and queue.busy.isdisjoint(victims):
            return queue.load(item, victims)
    leaving: frozenset[str] = frozenset()
    for leader in queue.ranked:
        if queue.may_run(leader, leaving):
            return queue.filled(leader, leaving)
        victims = loads.get(leader)
        if victims is None:
            continue
        if queue.pinned.isdisjoint(victims):
            return queue.load(leader, victims)
        leaving |= frozenset(victims)
    return None


def rank(weight: float, waited_s: float, left_s: float, mean_left_s: float) -> float:
    """weight * (head start + waited) / work left: who leads."""
    head_start_s = min(HEAD_START * mean_left_s, MAX_HEAD_START * left_s)
    return weight * (head_start_s + max(0.0, waited_s)) / left_s


def weight(item: Item, left_s: float, limits: Limits, now: float) -> float:
    """The item's class, or more while its deadline is at stake; a deadline that has passed is none."""
    time_s = float("inf") if item.deadline_at is None else item.deadline_at - now
    at_stake = 0.0 <= time_s <= CRITICAL_MARGIN * left_s + limits.max_seconds
    return CRITICAL_WEIGHT if at_stake else CLASS_WEIGHT[item.priority]


class _Queue:
    """Everything that waits, in order, and what it wants of the memory."""

    def __init__(self, items: Sequence[Item], costs: Costs, limits: Limits, now: float, memory: Memory) -> None:
        self._costs, self._limits, self._now, self._memory = costs, limits, now, memory
        self._wanted: dict[tuple[tuple[str, ...], tuple[str, ...]], frozenset[str]] = {}
        waiting = Counter(map(self.wanted, items))
        able = [wanted for wanted in waiting if memory.holds(wanted)]
        self.busy: frozenset[str] = frozenset().union(*able)
        """Networks on which work can be done now."""
        begun = {self.wanted(item) for item in items if item.begun}
        self.pinned: frozenset[str] = frozenset().union(*begun.intersection(able))
        """Those of them that a begun row needs. A begun row that cannot run pins nothing: two such could block each
        other for ever."""
        # A load serves all rows that wait for the same networks, and each bears its share of it.
        shares = {wanted: memory.load_s(wanted) / count for wanted, count in waiting.items()}
        left = {item.row: self._alone_s(item) + shares[self.wanted(item)] for item in items}
        mean_left_s = fmean(left.values())

        def order(item: Item) -> tuple[float, float, int]:
            left_s = left[item.row]
            ranked = rank(weight(item, left_s, limits, now), now - item.arrived_at, left_s, mean_left_s)
            return -ranked, item.arrived_at, item.row

        self.ranked = sorted(items, key=order)

    def wanted(self, item: Item) -> frozenset[str]:
        """The networks that have to be in memory before the item runs: all that its row will use, where these have
        room together, else those of its stage."""
        found = self._wanted.get((item.needs, item.keeps))
        if found is None:
            row = frozenset(item.needs + item.keeps)
            found = row if self._memory.fit(row) else frozenset(item.needs)
            self._wanted[item.needs, item.keeps] = found
        return found

    def leaders_of_loads(self) -> list[Item]:
        """The first in order of the items that wait for the same networks."""
        first: dict[frozenset[str], Item] = {}
        for item in self.ranked:
            first.setdefault(self.wanted(item), item)
        return [item for wanted, item in first.items() if not self._memory.holds(wanted)]

    def victims(self, leader: Item) -> tuple[str, ...] | None:
        """What has to leave for the leader's networks; None when they have to wait."""
        wanted = self.wanted(leader)
        victims = self._memory.displaced(wanted, self.busy)
        if victims is None:
            return None
        left_s = self._alone_s(leader) + self._memory.load_s(wanted)
        at_stake = weight(leader, left_s, self._limits, self._now) == CRITICAL_WEIGHT
        return victims if all(self._may_leave(name, at_stake) for name in victims) else None

    def _may_leave(self, name: str, at_stake: bool) -> bool:
        home = self._memory.networks[name]
        # One that left before it was used would make loads without any work between them.
        return name not in self.busy or (home.used and (at_stake or home.settled(self._now)))

    def load(self, leader: Item, victims: tuple[str, ...]) -> Batch:
        """The load that the leader waits for."""
        wanted = self.wanted(leader)
        missing = tuple(sorted(self._memory.missing(wanted)))
        key = BatchKey(Stage.LOAD, leader.key.model, "+".join(missing), (), 0, "", 0, leader.key.adapters)
        rows = tuple(item.row for item in self.ranked if self.wanted(item) == wanted)
        return Batch(key, rows, 0, load=missing, evict=victims)

    def filled(self, leader: Item, leaving: Collection[str]) -> Batch:
        """The leader's batch: those of its key that fit, in order."""
        key, lanes, chosen = leader.key, leader.lanes, [leader.row]
        if key.stage is Stage.DENOISE and not self._fits(key, lanes):
            lanes = self._divided(leader)
        if lanes < leader.lanes:
            return Batch(key, (leader.row,), lanes)
        for item in self.ranked:
            if item is leader or item.key != key or not self.may_run(item, leaving):
                continue
            if self._fits(key, lanes + item.lanes) and self._may_follow(item, leader, lanes):
                chosen.append(item.row)
                lanes += item.lanes
        return Batch(key, tuple(chosen), lanes)

    def may_run(self, item: Item, leaving: Collection[str]) -> bool:
        """Whether all it wants is in memory, and it is not a new row on networks that are to leave."""
        wanted = self.wanted(item)
        return self._memory.holds(wanted) and (item.begun or wanted.isdisjoint(leaving))

    def _fits(self, key: BatchKey, lanes: int) -> bool:
        return lanes <= key.max_lanes and self._costs.seconds(key, lanes) <= self._limits.max_seconds

    def _may_follow(self, item: Item, leader: Item, lanes: int) -> bool:
        """Whether a pass of so many lanes that the leader is in is not held up by the item, or may be."""
        if self._pressing(leader) <= PRESSING * self._pressing(item):
            return True
        more_s = self._costs.seconds(item.key, lanes + item.lanes) - self._costs.seconds(item.key, lanes)
        return more_s <= CHEAP * self._costs.seconds(item.key, item.lanes)

    def _pressing(self, item: Item) -> float:
        """What a second's delay counts: the weight of what it is, over its work."""
        left_s = self._alone_s(item)
        return weight(item, left_s, self._limits, self._now) / left_s

    def _divided(self, leader: Item) -> int:
        """Lanes of one pass of an item that is too long: the most that fit, or one. All, where fewer gain nothing: a
        back end that fills every batch up to a constant size takes as long for one lane as for two."""
        whole_s = self._costs.seconds(leader.key, leader.lanes)
        lanes = max((n for n in range(1, leader.lanes) if self._fits(leader.key, n)), default=1)
        return lanes if self._costs.seconds(leader.key, lanes) < whole_s else leader.lanes

    def _alone_s(self, item: Item) -> float:
        return item.evaluations * self._costs.seconds(item.key, item.lanes)
