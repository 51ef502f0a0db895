from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from service.jobs.job import JobError, Result, TextToImage
from service.jobs.redis import RedisStore
from service.jobs.redis_keys import channel, prefix
from tests.service.jobs.conftest import server

Picture = Callable[..., TextToImage]


@pytest.fixture
def client() -> Iterator[Any]:
    with redis.Redis.from_url(server("everysec").url, decode_responses=True) as opened:
        yield opened


def test_all_keys_of_an_installation_share_a_hash_tag() -> None:
    assert prefix("a") == "{a}:" and channel("a").startswith(prefix("a"))
    assert not channel("ab").startswith(prefix("a"))


def test_nothing_is_left_of_jobs_that_were_deleted(client: Any, tmp_path: Path, picture: Picture, clock: Any) -> None:
    """A key that is not cleaned up would be a leak in a server that runs for years."""
    name = str(tmp_path)
    store = RedisStore(server("everysec").url, clock=clock, namespace=name)

    def keys() -> set[str]:
        return {key.removeprefix(prefix(name)) for key in client.keys(f"{prefix(name)}*".replace("[", "\\["))}

    result = Result(content_sha256="a", media_type="image/png", seed=7, numerics_id="x")
    for model in ("one", "two"):
        for number in range(6):
            store.submit(picture(model=model), f"{model} {number}", deadline_s=100 if number == 5 else None)
    done, failed, lost, dropped = store.claim("w1", 4, 10)
    store.checkpoint(done.id, "half")
    store.checkpoint(lost.id, "half")
    assert store.complete(done.id, [result]) and store.fail(failed.id, JobError(code="x", message="x"))
    store.cancel(dropped.job.id)
    store.release("w1")
    full = keys()
    clock.now += 200
    for job in store.list(100):
        store.cancel(job.id)
    assert {"queues", "deadlines", "leases", "worker:w1", "queue:standard:one"}.isdisjoint(keys())
    assert {"queues", "queue:standard:one", "deadlines", f"job:{done.job.id}"} <= full
    assert store.prune(clock.now + 1, 100).jobs == 12
    assert keys() == {"schema", "clock", "ends"}
    store.close()
