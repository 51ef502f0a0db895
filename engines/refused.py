"""Engines that are not to be taken though they lie in the cache, and why: a mark beside an entry.

    <root>/<digest>.refused     what was found against the entry of this digest

An entry is named after all that its engine depends on, so that a mark ends with what it was found of: another driver,
another version or other weights are another entry. An engine that computes something else than torch leaves the cache
instead; these ones stay there, so that no start builds them again only to find the same.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from engines.cache import replace_file

logger = logging.getLogger(__name__)

CHECKS = 8
"""How often a watch looks in the time that it allows a call."""


@dataclass(frozen=True)
class Refusal:
    """What was found against an engine."""

    state: Literal["rejected", "slower"]
    reason: str


def refuse(entry: Path, refusal: Refusal) -> None:
    """Mark an entry of the cache. Where that cannot be written, as in a cache of an image, it is only logged."""
    try:
        replace_file(_mark(entry), json.dumps(asdict(refusal)).encode())
    except OSError as error:
        logger.warning("an engine cannot be marked", extra={"path": str(entry), "error": str(error)})


def refusal_of(entry: Path) -> Refusal | None:
    """What was found against an entry; None for one that may be taken."""
    try:
        return Refusal(**json.loads(_mark(entry).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        return Refusal("rejected", f"its mark cannot be read: {error}")


def allow(entry: Path) -> None:
    """Take the mark away, if there is one."""
    with suppress(OSError):
        _mark(entry).unlink()


class Watch:
    """Marks engines whose calls do not come back.

    Such a call ends with its process, by a watchdog that knows nothing of engines. The process that takes its place
    would take the same engine and hang again, were it not for the mark. A call that does come back, however late, takes
    its mark away.
    """

    def __init__(self, limit_s: float) -> None:
        """
        Args:
            limit_s: a call may take so long; less than the watchdog allows, or the mark comes too late.
        """
        self._limit_s, self._calls, self._marked = limit_s, dict[int, tuple[Path, float]](), set[int]()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def call(self, entry: Path) -> Iterator[None]:
        """A call of the engine of this entry, within the block. Costs microseconds."""
        self._begin()
        key = id(began := (entry, time.monotonic()))
        self._calls[key] = began
        try:
            yield
        finally:
            with self._lock:
                del self._calls[key]
                if key in self._marked:
                    self._marked.discard(key)
                    allow(entry)

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watch over engines", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(self._limit_s / CHECKS):
            with self._lock:
                for key, (entry, began) in list(self._calls.items()):
                    if time.monotonic() - began > self._limit_s and key not in self._marked:
                        self._marked.add(key)
                        refuse(entry, Refusal("rejected", f"a call of it did not come back within {self._limit_s:g} s"))
                        logger.warning("an engine does not answer", extra={"path": str(entry)})


def _mark(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.refused")
