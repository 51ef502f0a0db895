"""What the bus says, for the requests that wait: live progress, and a wake-up when a job may have ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress

from anyio import to_thread

from service.api.schema import Progress
from service.errors import Unavailable, UnknownJob
from service.jobs.bus import Bus, Event
from service.jobs.job import Job
from service.jobs.store import JobStore

POLL_S = 1.0
"""The bus may lose events, so whoever waits also asks the store this often."""
REMEMBERED = 1024
"""Jobs whose progress is kept; the end of one may go unheard, so the oldest make room."""


class JobWatch:
    """Listens to the bus on the event loop. Used from that loop only."""

    def __init__(self, bus: Bus, store: JobStore) -> None:
        self._bus = bus
        self._store = store
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._progress: OrderedDict[str, Progress] = OrderedDict()

    def start(self) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().add_reader(self._bus.fileno(), self._read)

    def stop(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._bus.fileno())

    def progress(self, job_id: str) -> Progress | None:
        """The last step that was heard of."""
        return self._progress.get(job_id)

    async def wait(self, job_id: str, timeout_s: float) -> Job:
        """The job when it has ended, or as it is after ``timeout_s``. A store that is away meanwhile is waited for.

        Raises:
            UnknownJob: the store does not have it.
            Unavailable: the store is away when the time is up.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        woken = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(woken)
        try:
            while True:
                woken.clear()
                left_s = deadline - asyncio.get_running_loop().time()
                job = await self._look(job_id, wait=left_s > 0)
                if job is not None and (job.state.final or left_s <= 0):
                    return job
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), min(left_s, POLL_S))
        finally:
            self._waiting[job_id].discard(woken)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def take(self, event: Event) -> None:
        """Pass on an event: one that arrived, or one of this process, which the bus does not send back to it."""
        if event.job is None:
            return
        if event.type == "progress" and event.step is not None and event.steps is not None:
            self._progress[event.job] = Progress(step=event.step, steps=event.steps)
            self._progress.move_to_end(event.job)
            if len(self._progress) > REMEMBERED:
                self._progress.popitem(last=False)
        if event.type in ("cancelled", "finished"):
            self._progress.pop(event.job, None)
            for woken in self._waiting.get(event.job, ()):
                woken.set()

    async def _look(self, job_id: str, wait: bool) -> Job | None:
        """The job; None when the store is away and there is time to ``wait`` for it."""
        try:
            job = await to_thread.run_sync(self._store.get, job_id)
        except Unavailable:
            if wait:
                return None
            raise
        if job is None:
            raise UnknownJob(f"job {job_id!r} does not exist")
        return job

    def _read(self) -> None:
        for event in self._bus.receive(0):
            self.take(event)
