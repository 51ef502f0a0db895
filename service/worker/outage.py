"""A store that is away for a while: a call that finds it so is logged, counted and made again later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from service.errors import Unavailable
from service.metrics import WorkerMetrics

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
"""Shorter than the time that servers leave to workers, after a store has come back, to renew their leases."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Outage:
    """The pauses between one thread's attempts: doubling while the store is away, anew when it has answered."""

    def __init__(self, metrics: WorkerMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._pause_s = FIRST_PAUSE_S
        self._until = -1.0

    @property
    def left_s(self) -> float:
        """Seconds until the next attempt makes sense; 0 while all is well."""
        return max(0.0, self._until - self._clock())

    def attempt(self, verb: str, call: Callable[[], T]) -> T | None:
        """What the store answers, or None when it is away."""
        try:
            answer = call()
        except Unavailable as error:
            self._until = self._clock() + self._pause_s
            self._metrics.store_unavailable.labels(verb).inc()
            extra = {"verb": verb, "again_in_s": self._pause_s, "error": error.message}
            logger.warning("the job store is away", extra=extra)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            return None
        self._pause_s, self._until = FIRST_PAUSE_S, -1.0
        return answer
