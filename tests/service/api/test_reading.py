"""Looks into the store: on the event loop where that is a file, beside it where that is a server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import pytest

from service.api.reading import Reader
from service.jobs.job import Job, JobState, TextToImage
from service.jobs.sqlite import SQLiteStore
from service.jobs.store import JobStore

REQUEST = TextToImage(
    model="m", prompt="x", width=8, height=8, num_inference_steps=1, guidance_scale=1, scheduler="euler", seed=0
)


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_read(tmp_path: Path, at_once: bool) -> None:
    store = SQLiteStore(tmp_path / "jobs")
    reader = Reader(store, at_once)
    first, second = (store.submit(REQUEST) for _ in range(2))
    assert await reader.get(second.id) == second and await reader.get("stranger") is None
    assert [await reader.position(job) for job in (first, second)] == [0, 1]
    assert await reader.look(second.id) == (second, 1) and await reader.look("stranger") == (None, None)
    ended = store.cancel(second.id)
    assert ended is not None and ended.state is JobState.CANCELLED
    assert await reader.look(second.id) == (ended, None) and await reader.position(ended) is None
    store.close()


@pytest.mark.parametrize("at_once", [True, False])
async def test_only_a_server_is_asked_in_a_thread(at_once: bool) -> None:
    class Asked:
        def get(self, job_id: str) -> Job | None:
            self.on_the_loop = threading.current_thread() is threading.main_thread()
            return None

    store = Asked()
    await Reader(cast("JobStore", store), at_once).get("a")
    assert store.on_the_loop is at_once
