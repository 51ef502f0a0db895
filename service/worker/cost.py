"""Measured seconds of a forward pass, by batch key and lanes."""

from __future__ import annotations

from collections import defaultdict

from service.worker.batch import BatchKey

SMOOTHING = 0.2
"""Weight of the newest measurement: a machine's speed drifts, single passes are noisy."""
FIRST_GUESS_S = 0.02
"""Seconds a lane before anything was measured; only an order of magnitude is needed to choose a first batch."""


class CostTable:
    """Learns from every pass that runs."""

    def __init__(self) -> None:
        self._seconds: dict[BatchKey, dict[int, float]] = defaultdict(dict)

    def measured(self, key: BatchKey, lanes: int, seconds: float) -> None:
        """Take in that ``lanes`` lanes took ``seconds``."""
        known = self._seconds[key]
        known[lanes] = seconds if lanes not in known else (1 - SMOOTHING) * known[lanes] + SMOOTHING * seconds

    def seconds(self, key: BatchKey, lanes: int) -> float:
        """Predicted seconds of ``lanes`` lanes: measured; else between the nearest sizes that were; else a guess."""
        known = self._seconds.get(key)
        if not known:
            return FIRST_GUESS_S * lanes
        if lanes in known:
            return known[lanes]
        smaller = max((n for n in known if n < lanes), default=None)
        larger = min((n for n in known if n > lanes), default=None)
        if smaller is not None and larger is not None:
            share = (lanes - smaller) / (larger - smaller)
            return known[smaller] + share * (known[larger] - known[smaller])
        if smaller is not None:
            return known[smaller] * lanes / smaller
        # A small batch has the fixed cost of a large one: it is not cheaper in proportion, so do not promise that.
        return known[larger] if larger is not None else FIRST_GUESS_S * lanes
