"""What only the Redis store promises: what survives its server, and what is said while it is away."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from service.errors import Unavailable
from service.jobs.job import Job, JobState, TextToImage
from service.jobs.redis import RedisStore
from service.jobs.store import JobStore
from tests.service.jobs.conftest import server
from tests.service.jobs.redis_server import Durability, RedisServer

Picture = Callable[..., TextToImage]
Start = Callable[..., RedisServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that the test may kill."""
    started: list[RedisServer] = []

    def make(durability: Durability, max_file_bytes: int | None = None) -> RedisServer:
        started.append(RedisServer(Path(tempfile.mkdtemp(prefix="redis-")), durability, max_file_bytes))
        return started[-1]

    yield make
    for running in started:
        running.remove()


def lost(told: list[Job], store: RedisStore) -> list[Job]:
    """Jobs that were accepted and are not there."""
    return [job for job in told if store.get(job.id) != job]


def test_it_has_every_verb(tmp_path: Path) -> None:
    store: JobStore = RedisStore(server("everysec").url, namespace=str(tmp_path))  # mypy compares the signatures
    verbs = {name for name in vars(JobStore) if not name.startswith("_")}
    assert {"submit", "claim", "complete"} <= verbs <= set(dir(store))
    store.close()


@pytest.mark.parametrize("durability", ["always", "everysec"])
def test_a_killed_server_keeps_what_it_promised(start: Start, picture: Picture, durability: Durability) -> None:
    """SIGKILL under load, again and again; a job may be lost only with everysec, and only from the last two seconds."""
    running = start(durability)
    store = RedisStore(running.url)
    told: list[Job] = []
    completed: set[str] = set()
    for _ in range(2):
        for number in range(20):
            told.append(store.submit(picture(seed=number)))
        for lease in store.claim("w1", 3, 600):
            assert store.complete(lease.id, [])
            completed.add(lease.job.id)
        killed_at = time.time()
        running.kill()
        with pytest.raises(Unavailable, match="reached"):
            store.submit(picture())
        running.start()
        gone = lost([job for job in told if job.id not in completed], store)
        assert durability == "everysec" or not gone
        assert all(killed_at - job.created_at < 2 for job in gone)
        told = [job for job in told if job not in gone]
    kept = {job.id for job in store.list(1000, state=JobState.COMPLETED)}
    assert kept == completed if durability == "always" else kept <= completed
    store.close()


def test_control_a_server_without_a_log_loses_all(
    start: Start, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    running = start("none")
    with caplog.at_level(logging.WARNING):
        store = RedisStore(running.url)
    assert "no append-only log" in caplog.text, "and says so"
    told = [store.submit(picture()) for _ in range(20)]
    assert lost(told, store) == []
    running.kill()
    running.start()
    assert lost(told, store) == told
    store.close()


@pytest.mark.parametrize("durability", ["always", "everysec"])
def test_a_full_disk_is_told_and_loses_nothing(start: Start, picture: Picture, durability: Durability) -> None:
    running = start(durability, max_file_bytes=20_000)
    store = RedisStore(running.url)
    told: list[Job] = []
    with pytest.raises(Unavailable):
        for _ in range(500):
            told.append(store.submit(picture(prompt="x" * 200)))
    assert len(told) > 5
    running.kill()
    running.start()
    gone = lost(told, store)
    assert gone == [] if durability == "always" else gone == told[len(told) - len(gone) :]
    assert store.submit(picture()).state is JobState.QUEUED
    store.close()


def test_a_server_that_hangs_is_not_waited_for_long(start: Start, picture: Picture) -> None:
    running = start("none")
    store = RedisStore(running.url, timeout_s=0.3)
    with redis.Redis.from_url(running.url) as client:
        client.execute_command("CLIENT", "PAUSE", 3000, "ALL")
    began = time.monotonic()
    with pytest.raises(Unavailable):
        store.submit(picture())
    assert time.monotonic() - began < 2.5
    store.close()


def test_leases_run_by_the_servers_clock(tmp_path: Path, picture: Picture) -> None:
    store = RedisStore(server("everysec").url, namespace=str(tmp_path))
    job = store.submit(picture())
    assert abs(job.created_at - time.time()) < 5
    (lease,) = store.claim("w1", 1, 0.2)
    assert lease.job.started_at is not None
    assert lease.expires_at == pytest.approx(lease.job.started_at + 0.2, abs=1e-5)
    assert store.reap() == 0
    time.sleep(0.25)
    assert store.reap() == 1
    store.close()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    url, name = server("everysec").url, str(tmp_path)
    RedisStore(url, namespace=name).close()
    with redis.Redis.from_url(url) as client:
        client.set(f"{{{name}}}:schema", 99)
    with pytest.raises(RuntimeError, match="schema 99"):
        RedisStore(url, namespace=name)


def test_a_server_that_forgot_the_scripts_is_told_them_again(tmp_path: Path, picture: Picture) -> None:
    store = RedisStore(server("everysec").url, namespace=str(tmp_path))
    store.submit(picture())
    with redis.Redis.from_url(server("everysec").url) as client:
        client.script_flush()
    assert store.submit(picture()).state is JobState.QUEUED
    store.close()


def test_jobs_of_the_first_schema_are_taken_over(tmp_path: Path, picture: Picture) -> None:
    """Then a state was one sorted set, whatever the task."""
    url, name = server("everysec").url, str(tmp_path)
    before = RedisStore(url, namespace=name)
    ids = [before.submit(picture()).id for _ in range(3)]
    assert before.complete(before.claim("w1", 1, 30)[0].id, [])
    before.close()
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for number, state in enumerate(("completed", "queued", "queued")):
            of_task = f"{{{name}}}:state:{state}:text-to-image"
            client.zrem(of_task, ids[number])
            client.zadd(f"{{{name}}}:state:{state}", {ids[number]: number + 1})
            client.hdel(f"{{{name}}}:job:{ids[number]}", "task")
        client.set(f"{{{name}}}:schema", 1)
        store = RedisStore(url, namespace=name)
        assert not client.exists(f"{{{name}}}:state:queued") and client.get(f"{{{name}}}:schema") == "2"
    assert [job.id for job in store.list(5, tasks=["text-to-image"])] == ids[::-1]
    assert [job.id for job in store.list(5, state=JobState.QUEUED)] == ids[:0:-1]
    assert [lease.job.id for lease in store.claim("w1", 5, 30)] == ids[1:]
    assert store.stats().ended == {JobState.COMPLETED: 1} and store.delete(ids[0]) is not None
    store.close()
