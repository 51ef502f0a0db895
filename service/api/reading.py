"""Short looks into the store, from the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from anyio import to_thread

from service.jobs.job import Job, JobState
from service.jobs.store import JobStore

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


class Reader:
    """Reads jobs.

    Args:
        store: where they are.
        at_once: whether to read on the event loop. A file answers in less time than two changes of threads take, and
            no write holds its reads up; a server may be far away or not answer.
    """

    def __init__(self, store: JobStore, at_once: bool) -> None:
        self._store, self._at_once = store, at_once

    async def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return await self._call(self._store.get, job_id)

    async def position(self, job: Job) -> int | None:
        """How many jobs come before this one; None when it does not wait."""
        return await self._call(self._position, job) if job.state is JobState.QUEUED else None

    async def look(self, job_id: str) -> tuple[Job | None, int | None]:
        """The job or None, and its position."""
        return await self._call(self._look, job_id)

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The states of those that there are."""
        return await self._call(self._store.states, job_ids)

    def _look(self, job_id: str) -> tuple[Job | None, int | None]:
        job = self._store.get(job_id)
        return job, None if job is None else self._position(job)

    def _position(self, job: Job) -> int | None:
        return self._store.position(job.id) if job.state is JobState.QUEUED else None

    async def _call(self, look: Callable[Arguments, Found], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Found:
        if self._at_once:
            return look(*args, **kwargs)
        return await to_thread.run_sync(lambda: look(*args, **kwargs))
