"""Who may submit a job when there are more than the queue holds: clients that were told when to come back go first."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable

MAX_PROMISES = 4096
MAX_WAIT_S = 120.0
"""OpenAI's client does not come back for more. Who would have to wait longer is told so, and promised nothing."""
MIN_WAIT_S = 1.0
GRACE_S = 10.0
"""How long after its time a promise is kept."""
MARGIN = 1.1
"""Of what is promised over what is predicted."""


class Line:
    """The line of clients that were refused and told when to come back. It is empty unless the queue has been full.

    A new client is refused while the places that come free are promised to others, or those who wait as they are told
    would lose every race. Clients are known by what they ask for: whoever asks the same again is the one who was told.

    Args:
        max_queued: jobs that the queue holds.
        clock: seconds that never go back.
    """

    def __init__(self, max_queued: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._due_of: dict[str, list[float]] = {}
        self._due: list[float] = []  # all of them, ascending

    def __len__(self) -> int:
        """Promises that are open."""
        self._forget_missed()
        return len(self._due)

    def ask(self, client: str, queued: int, seconds_per_job: float) -> float | None:
        """None: it may submit now. Else when to come back, in seconds.

        Args:
            client: who asks, or what for.
            queued: jobs that wait.
            seconds_per_job: how often a place comes free.
        """
        self._forget_missed()
        now, own = self._clock(), self._due_of.get(client)
        if own:
            if own[0] > now + MIN_WAIT_S:
                return own[0] - now
            self._take(client, own[0])
            return None
        # Only promises that fall due before the queue is empty compete for its places.
        promised = bisect.bisect_right(self._due, now + seconds_per_job * queued)
        return None if queued + promised < self._max_queued else self.promise(client, queued, seconds_per_job)

    def promise(self, client: str, queued: int, seconds_per_job: float) -> float:
        """When this client, who cannot be let in, should come back, in seconds."""
        ahead = max(queued - self._max_queued, 0) + len(self._due) + 1
        wait_s = max(MIN_WAIT_S, MARGIN * ahead * seconds_per_job)
        if wait_s <= MAX_WAIT_S and len(self._due) < MAX_PROMISES:
            due = self._clock() + math.ceil(wait_s)
            bisect.insort(self._due, due)
            bisect.insort(self._due_of.setdefault(client, []), due)
        return wait_s

    def _forget_missed(self) -> None:
        missed = bisect.bisect_left(self._due, self._clock() - GRACE_S)
        if not missed:
            return
        gone = self._due[missed - 1]
        del self._due[:missed]
        for client in [client for client, due in self._due_of.items() if due[0] <= gone]:
            left = [due for due in self._due_of[client] if due > gone]
            if left:
                self._due_of[client] = left
            else:
                del self._due_of[client]

    def _take(self, client: str, due: float) -> None:
        del self._due[bisect.bisect_left(self._due, due)]
        self._due_of[client].remove(due)
        if not self._due_of[client]:
            del self._due_of[client]
