"""What work costs: seconds of a pass by batch key and lanes, and device seconds of a whole job by model. Measured."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from service.worker.batch import BatchKey, Stage

SMOOTHING = 0.2
"""Least weight of the newest measurement: a machine's speed drifts, single passes are noisy. The first ones count
equally, for the very first of a shape is often slow."""
FIRST_GUESS_S = 0.02
"""Seconds a lane before anything was measured; only an order of magnitude is needed to choose a first batch."""
MAX_KEYS = 1024
"""Shapes that are remembered; of more, those not seen for longest are forgotten."""
DECAY = 0.95
"""Of a model's jobs each counts so much more than the one before: about the last twenty make its price."""

_Key = tuple[object, ...]
NETWORK_FIELDS = 4
"""Of a shape's name, those that name its network."""


@dataclass
class _Mean:
    seconds: float
    count: int = 1

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += max(SMOOTHING, 1 / self.count) * (seconds - self.seconds)


@dataclass
class _Shape:
    """What is known of one key."""

    work: int
    by_lanes: dict[int, _Mean] = field(default_factory=dict)

    def seconds(self, lanes: int) -> float:
        """Measured; else between the nearest sizes that were."""
        known = self.by_lanes
        if lanes in known:
            return known[lanes].seconds
        smaller = max((n for n in known if n < lanes), default=None)
        larger = min((n for n in known if n > lanes), default=None)
        if smaller is None:
            # A small batch has the fixed cost of a large one: it is not cheaper in proportion, so do not promise that.
            return math.inf if larger is None else known[larger].seconds
        if larger is None:
            return known[smaller].seconds * lanes / smaller
        share = (lanes - smaller) / (larger - smaller)
        return known[smaller].seconds + share * (known[larger].seconds - known[smaller].seconds)


class CostTable:
    """Learns from every pass that runs."""

    def __init__(self, on_measured: Callable[[Stage, float], None] | None = None) -> None:
        """
        Args:
            on_measured: told the stage of every pass, and its predicted seconds over the actual ones.
        """
        self._on_measured = on_measured
        self._shapes: OrderedDict[_Key, _Shape] = OrderedDict()
        self._networks: dict[_Key, dict[_Key, _Shape]] = {}

    def measured(self, key: BatchKey, lanes: int, seconds: float) -> None:
        """Take in that a pass of ``lanes`` lanes took ``seconds``, positive."""
        if self._on_measured is not None:
            self._on_measured(key.stage, self.seconds(key, lanes) / seconds)
        name, network = _names(key)
        shape = self._shapes.get(name)
        if shape is None:
            shape = self._shapes[name] = self._networks.setdefault(network, {})[name] = _Shape(_work(key))
            if len(self._shapes) > MAX_KEYS:
                self._forget()
        self._shapes.move_to_end(name)
        if lanes in shape.by_lanes:
            shape.by_lanes[lanes].add(seconds)
        else:
            shape.by_lanes[lanes] = _Mean(seconds)

    def seconds(self, key: BatchKey, lanes: int) -> float:
        """Predicted seconds of ``lanes`` lanes: of this shape; else from the shape nearest in size that the network ran
        on, in proportion to pixels and frames; else a guess."""
        name, network = _names(key)
        shape = self._shapes.get(name)
        if shape is not None:
            return shape.seconds(lanes)
        others = self._networks.get(network)
        if not others:
            return FIRST_GUESS_S * lanes
        work = _work(key)
        nearest = min(others.values(), key=lambda other: abs(math.log(work / other.work)))
        return nearest.seconds(lanes) * work / nearest.work

    def _forget(self) -> None:
        name, _ = self._shapes.popitem(last=False)
        network = name[:NETWORK_FIELDS]
        del self._networks[network][name]
        if not self._networks[network]:
            del self._networks[network]


class JobPrices:
    """Device seconds of a job by model: what its passes took, shared among the jobs that ended meanwhile.

    Batching is in it: while jobs share passes, each costs less.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def spent(self, model: str, seconds: float) -> None:
        """A pass of the model took ``seconds``."""
        self._spent[model] = self._spent.get(model, 0.0) + seconds

    def ended(self, model: str) -> None:
        """A job of the model is done."""
        self._spent[model] = DECAY * self._spent.get(model, 0.0)
        self._ended[model] = DECAY * (self._ended.get(model, 0.0) + 1.0)

    @property
    def seconds_per_job(self) -> dict[str, float]:
        """By model, of those of which a job has ended."""
        return {model: self._spent[model] / ended for model, ended in self._ended.items() if self._spent[model]}


def _names(key: BatchKey) -> tuple[_Key, _Key]:
    """What passes of one price have in common, and what all passes of a network have. Adapters are part of the numerics
    id; the bound on lanes is no property of a pass, and so no part of a price."""
    network = (key.stage, key.model, key.network, key.numerics_id)
    return (*network, key.shape, key.tokens), network


def _work(key: BatchKey) -> int:
    """Latent pixels of a lane, of all frames."""
    channels, *sides = key.shape[-3:] or (1,)
    return max(1, math.prod(sides) * math.prod(key.shape[:-3]))
