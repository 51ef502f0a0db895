"""The API without torch on a real Redis: workers beside it, and a Redis that is killed under them."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.status import read_status
from tests.service.jobs.redis_server import RedisServer
from tests.support.server import ServerProcess

LEASE_S = 4.0
SIX: list[dict[str, Any]] = [{"prompt": "a red cat", "num_inference_steps": 100, "seed": 90 + i} for i in range(6)]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """What it has answered, it has on disk."""
    server = RedisServer(Path(tempfile.mkdtemp(prefix="redis-")), "always")
    yield server
    server.remove()


@pytest.fixture(scope="module")
def server(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path, sdxl_engines: Path
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("redis")
    settings = {"store": redis.url, "artifacts": str(folder / "pictures"), "lease_s": str(LEASE_S), "workers": "0"}
    with ServerProcess(folder / "data", sdxl_folder, sdxl_engines, torch=False, **settings) as running:
        waiting = running.submit(prompt="a red cat")
        worker = running.work(running.data)
        try:
            running.finished([waiting])  # accepted before there was a worker
            yield running
        finally:
            worker.kill()
            worker.wait()


def test_jobs_on_redis(server: ServerProcess) -> None:
    ended = server.metric("darkroom_store_jobs_ended_total", outcome="completed")
    job_id = server.submit(prompt="a red cat", seed=1, priority="batch", deadline_s=60)
    (job,) = server.finished([job_id])
    assert (job["priority"], job["attempts"]) == ("batch", 1)
    picture = server.http.get(job["results"][0]["url"])
    assert picture.content.startswith(b"\x89PNG")
    answer = server.http.post("/v1/images/generations", json={"prompt": "a red cat", "seed": 1}).json()
    assert answer["data"][0]["content_sha256"] == job["results"][0]["content_sha256"]
    assert server.metric("darkroom_store_jobs_ended_total", outcome="completed") == ended + 2
    assert not (server.data / "jobs.sqlite3").exists() and not (server.data / "bus").exists()


def test_a_redis_that_is_killed_loses_no_job(server: ServerProcess, redis: RedisServer) -> None:
    undisturbed = server.hashes([server.submit(**body) for body in SIX])
    jobs = server.together(SIX)
    server.until(lambda: any((server.job(job_id)["progress"] or {"step": 0})["step"] for job_id in jobs))
    pid = server.worker.pid
    redis.kill()
    answer = server.http.post("/v1/jobs", json={"prompt": "a dog"})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert server.http.get(f"/v1/jobs/{jobs[0]}").status_code == 503
    assert server.metric("darkroom_store_up") == 0
    server.until(lambda: server.metric("darkroom_store_unavailable_total", verb="renew") > 0)
    redis.start()
    assert server.hashes(jobs) == undisturbed
    assert [server.job(job_id)["attempts"] for job_id in jobs] == [1] * len(jobs), "nothing was made twice"
    assert server.metric("darkroom_store_up") == 1 and server.worker.pid == pid, "the worker lived through it"


@pytest.mark.slow
def test_two_workers_share_the_jobs_and_one_finishes_those_of_the_other(server: ServerProcess, tmp_path: Path) -> None:
    undisturbed = server.hashes([server.submit(**body) for body in SIX])
    first, second = server.worker, server.work(tmp_path / "second")

    def ready() -> bool:
        status = read_status(tmp_path / "second" / "worker.json")
        return status is not None and status.state == "ready"

    try:
        server.until(ready, 120)
        os.kill(first.pid, signal.SIGSTOP)
        jobs = [server.submit(**body) for body in SIX]
        server.until(lambda: {server.job(job_id)["state"] for job_id in jobs} == {"running"})
        second.kill()  # nobody watches over it: its leases run out
        second.wait()
        os.kill(first.pid, signal.SIGCONT)
        assert server.hashes(jobs) == undisturbed
        assert {server.job(job_id)["attempts"] for job_id in jobs} <= {1, 2}
        assert any(server.job(job_id)["attempts"] == 2 for job_id in jobs)
    finally:
        second.kill()
        second.wait()
