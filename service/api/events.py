"""What the bus says, for the requests that wait: live progress, previews, and a wake-up when a job may have ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from service.api.reading import Reader
from service.api.sse import KEEP_ALIVE_S
from service.api.views import Progress
from service.errors import Unavailable, UnknownJob
from service.jobs.bus import Bus, Event
from service.jobs.job import Job, JobState

POLL_S = 1.0
"""The bus may lose events, so the store is asked for the states of all jobs that somebody waits for, this often,"""
POLLED_AT_ONCE = 500
"""and for so many at a time."""
REMEMBERED = 1024
"""Jobs whose progress and previews are kept; the end of one may go unheard, so the oldest make room."""
BACKLOG = 64
"""Events that wait for a slow reader; older ones are dropped."""

Kept = TypeVar("Kept")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """An event of the bus with its number in this process."""

    event: Event
    number: int


@dataclass
class _Listener:
    events: deque[Heard] | None
    """None: only the end is of interest."""
    state: JobState | None = None
    """Of the job, as it was last seen."""
    changed: bool = False
    """Whether the store knows better."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class JobWatch:
    """Listens to the bus on the event loop. Used from that loop only."""

    def __init__(self, bus: Bus, reader: Reader) -> None:
        self._bus = bus
        self._reader = reader
        self._listeners: dict[str, list[_Listener]] = {}
        self._heard = 0
        self._poller: asyncio.Task[None] | None = None
        self._boot = secrets.token_hex(4)
        self._progress: OrderedDict[str, Progress] = OrderedDict()
        self._previews: OrderedDict[str, dict[tuple[int, int], Heard]] = OrderedDict()

    def start(self) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().add_reader(self._bus.fileno(), self._read)
        self._poller = asyncio.create_task(self._poll())

    def stop(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._bus.fileno())
        if self._poller is not None:
            self._poller.cancel()

    def progress(self, job_id: str) -> Progress | None:
        """The last step that was heard of."""
        return self._progress.get(job_id)

    def name_of(self, heard: Heard) -> str:
        """What a client may give as Last-Event-ID, to this process or another."""
        return f"{self._boot}-{heard.number}"

    async def wait(self, job_id: str, timeout_s: float) -> Job:
        """The job when it has ended, or as it is after ``timeout_s``. A store that is away meanwhile is waited for.

        Raises:
            UnknownJob: the store does not have it.
            Unavailable: the store is away when the time is up.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        with self._listening(job_id, _Listener(None)) as listener:
            while True:
                listener.woken.clear()
                left_s = deadline - asyncio.get_running_loop().time()
                job = await self._look(job_id, wait=left_s > 0)
                if job is not None and (job.state.final or left_s <= 0):
                    return job
                listener.state = job.state if job is not None else None
                await _woken(listener, left_s)

    async def follow(self, job_id: str, after: str | None = None) -> AsyncGenerator[Job | Heard | None, None]:
        """The job whenever its state has changed, the last time when it has ended; between, what is heard of it, and
        None when that was nothing for a while.

        Previews that were heard before come first, without those up to ``after`` (see :meth:`name_of`).

        Raises:
            UnknownJob: the store does not have it, any more.
        """
        events = deque(self._missed_previews(job_id, after), maxlen=BACKLOG)
        with self._listening(job_id, _Listener(events)) as listener:
            while True:
                listener.changed = False
                job = await self._look(job_id, wait=True)
                if job is not None and job.state is not listener.state and not job.state.final:
                    yield job
                while events:
                    yield events.popleft()
                if job is not None and job.state.final:
                    yield job
                    return
                listener.state = listener.state if job is None else job.state
                while not listener.changed:
                    listener.woken.clear()
                    if not events and not await _woken(listener, KEEP_ALIVE_S):
                        yield None
                    while events and not listener.changed:
                        yield events.popleft()

    def take(self, event: Event) -> None:
        """Pass on an event: one that arrived, or one of this process, which the bus does not send back to it."""
        if event.job is None or event.type == "submitted":
            return
        self._heard += 1
        heard = Heard(event, self._heard)
        if event.type == "progress" and event.step is not None and event.steps is not None:
            _remember(self._progress, event.job, Progress(step=event.step, steps=event.steps))
        if event.type == "preview" and event.preview is not None:
            known = self._previews.get(event.job, {})
            _remember(self._previews, event.job, {**known, (event.index or 0, event.part or 0): heard})
        ended = event.type in ("cancelled", "finished")
        if ended:
            self._progress.pop(event.job, None)
        for listener in self._listeners.get(event.job, ()):
            if listener.events is not None:
                listener.events.append(heard)
            if ended or (listener.state is JobState.QUEUED and event.type == "progress"):
                listener.changed = True
            if ended or listener.events is not None:
                listener.woken.set()

    def _missed_previews(self, job_id: str, after: str | None) -> list[Heard]:
        boot, _, number = (after or "").partition("-")
        seen = int(number) if boot == self._boot and number.isdecimal() else 0
        return sorted(
            (heard for heard in self._previews.get(job_id, {}).values() if heard.number > seen),
            key=lambda heard: heard.number,
        )

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            awaited = list(self._listeners)
            try:
                for first in range(0, len(awaited), POLLED_AT_ONCE):
                    part = awaited[first : first + POLLED_AT_ONCE]
                    self._compare(part, await self._reader.states(part))
            except Unavailable:
                continue
            except Exception:  # A fault now must not keep those who wait for ever.
                logger.exception("jobs that are waited for could not be looked at")

    def _compare(self, job_ids: Sequence[str], states: Mapping[str, JobState]) -> None:
        for job_id in job_ids:
            state = states.get(job_id)
            for listener in self._listeners.get(job_id, ()):
                if state is None or state is not listener.state:
                    listener.changed = True
                    listener.woken.set()

    @contextmanager
    def _listening(self, job_id: str, listener: _Listener) -> Iterator[_Listener]:
        self._listeners.setdefault(job_id, []).append(listener)
        try:
            yield listener
        finally:
            self._listeners[job_id].remove(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    async def _look(self, job_id: str, wait: bool) -> Job | None:
        """The job; None when the store is away and there is time to ``wait`` for it."""
        try:
            job = await self._reader.get(job_id)
        except Unavailable:
            if wait:
                return None
            raise
        if job is None:
            raise UnknownJob(f"job {job_id[:80]!r} does not exist")
        return job

    def _read(self) -> None:
        for event in self._bus.receive(0):
            self.take(event)


async def _woken(listener: _Listener, timeout_s: float) -> bool:
    """Whether something was heard in this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await listener.woken.wait()
    return listener.woken.is_set()


def _remember(kept: OrderedDict[str, Kept], job_id: str, value: Kept) -> None:
    kept[job_id] = value
    kept.move_to_end(job_id)
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
