from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from service.jobs import redis_scripts
from service.jobs.job import JobState, Priority, TextToImage
from service.jobs.redis import RedisStore
from service.jobs.redis_scripts import Script
from tests.service.jobs.conftest import server

SCRIPTS = {name: value for name, value in vars(redis_scripts).items() if isinstance(value, Script)}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_names_are_what_the_server_calls_them(name: str) -> None:
    script = SCRIPTS[name]
    assert script.sha == hashlib.sha1(script.text.encode()).hexdigest()
    with redis.Redis.from_url(server("everysec").url, decode_responses=True) as client:
        assert client.script_load(script.text) == script.sha


def test_parts_of_a_long_reap_add_up(
    tmp_path: Path, picture: Callable[..., TextToImage], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = redis_scripts.REAP.text.replace("1000", "3")
    assert shorter != redis_scripts.REAP.text
    monkeypatch.setattr(redis_scripts, "REAP", Script(shorter, hashlib.sha1(shorter.encode()).hexdigest()))
    monkeypatch.setattr(redis_scripts, "REAP_LIMIT", 3)
    store = RedisStore(server("everysec").url, clock=clock, namespace=str(tmp_path))
    for _ in range(8):
        store.submit(picture())
    store.claim("w1", 4, 10)
    store.claim("w2", 4, 10)
    assert store.reap("w1") == 4 and store.reap("w1") == 0
    clock.now += 20
    assert store.reap() == 4 and store.stats().queued == 8
    store.close()


def test_a_claim_passes_over_late_jobs_that_are_not_expired_yet(
    tmp_path: Path, picture: Callable[..., TextToImage], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More jobs are late at once than one look ends."""
    shorter = redis_scripts.CLAIM.text.replace("1000)", "2)")
    assert shorter != redis_scripts.CLAIM.text
    monkeypatch.setattr(redis_scripts, "CLAIM", Script(shorter, hashlib.sha1(shorter.encode()).hexdigest()))
    store = RedisStore(server("everysec").url, clock=clock, namespace=str(tmp_path))
    late = [store.submit(picture(), deadline_s=5, priority=Priority.INTERACTIVE).id for _ in range(5)]
    good = store.submit(picture())
    clock.now += 10
    assert [lease.job.id for lease in store.claim("w1", 4, 10)] == [good.id]
    assert {job.id for job in store.list(10, state=JobState.EXPIRED)} == set(late)
    store.close()
