"""A lossy bus between processes: hints that save a look into the store, never the truth."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from service.jobs.bus_local import LocalTransport

MAX_EVENT_BYTES = 32 * 1024
"""Every transport carries it in one piece."""
PROGRESS_EVERY_S = 0.5
"""The pause between two reports on one job that a worker's bus should keep."""
_REMEMBERED = 1024  # jobs whose last report is known; the end of one may come from elsewhere, so the oldest make room


@dataclass(frozen=True)
class Event:
    """What happened: a job was submitted (``job`` may be absent), cancelled, finished in any way, or has done ``step``
    of its ``steps``. With type ``preview``: its picture ``index`` looks by then as the artifact ``preview`` does, which
    is number ``part`` of those its request asked for, counted from 0."""

    type: Literal["submitted", "cancelled", "progress", "preview", "finished"]
    job: str | None = None
    step: int | None = None
    steps: int | None = None
    index: int | None = None
    part: int | None = None
    preview: str | None = None


_EVENT = TypeAdapter(Event)


class Transport(Protocol):
    """Carries events as bytes from one process to all others that share an address. Any thread may send, one thread at
    a time receives."""

    def send(self, data: bytes) -> None:
        """Hand over to every other process, without waiting for any."""

    def receive(self, timeout_s: float) -> list[bytes]:
        """What has arrived, after waiting up to ``timeout_s`` for the first; some of it at least, if there is much."""

    def fileno(self) -> int:
        """Readable while something has arrived; the same for as long as the transport is open."""

    def close(self) -> None:
        """Leave; closing twice is fine."""


class Bus:
    """This process's place on the bus.

    Any thread may publish, one thread at a time receives. Receive often, since transports hold few unread events, and
    look into the store now and then all the same.

    Args:
        address: a folder for the processes of one machine (created when missing), or the URL of a Redis server for
            several machines: what is told at one address is heard by all who have the same.
        progress_every_s: progress of a job that follows the last report of it sooner is dropped.

    Raises:
        ValueError: the folder's path is too long for a socket, and there is no /proc to shorten it.
    """

    def __init__(self, address: Path | str, progress_every_s: float = 0.0) -> None:
        self._transport = _open(address)
        self._every_s = progress_every_s
        self._reported: OrderedDict[str | None, float] = OrderedDict()

    def publish(self, event: Event) -> None:
        """Tell every other process, without waiting.

        The sender does not get its own event: a worker's progress would fill its own socket and crowd out a cancel.

        Raises:
            ValueError: the event has more than 32 KiB.
        """
        if event.type == "progress" and self._too_soon(event):
            return
        data = _EVENT.dump_json(event, exclude_none=True)
        if len(data) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of {len(data)} bytes; the bus carries {MAX_EVENT_BYTES}")
        self._transport.send(data)

    def receive(self, timeout_s: float) -> list[Event]:
        """All events that are there, after waiting up to ``timeout_s`` for the first; anything malformed is dropped."""
        events: list[Event] = []
        for data in self._transport.receive(max(timeout_s, 0.0)):
            try:
                events.append(_EVENT.validate_json(data, strict=True))
            except ValidationError:
                continue
        return events

    def fileno(self) -> int:
        """For ``asyncio``'s ``add_reader``: when it is readable, call ``receive(0)``."""
        return self._transport.fileno()

    def close(self) -> None:
        """Leave the bus; closing twice is fine."""
        self._transport.close()

    def _too_soon(self, event: Event) -> bool:
        # Two threads that report on one job in the same instant may both pass, which does no harm.
        now, key = time.monotonic(), event.job
        if now - self._reported.get(key, -self._every_s) < self._every_s:
            return True
        self._reported[key] = now
        if len(self._reported) > _REMEMBERED:
            self._reported.popitem(last=False)
        return False


def _open(address: Path | str) -> Transport:
    if "://" not in str(address):
        return LocalTransport(address)
    from service.jobs.bus_redis import RedisTransport  # an extra of the installation

    return RedisTransport(str(address))
