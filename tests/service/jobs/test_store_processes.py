"""Several processes on one store, and processes that are killed."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.jobs.job import JobState, TextToImage
from service.jobs.sqlite import SQLiteStore
from tests.service.jobs.conftest import SQLITE

Picture = Callable[..., TextToImage]
Spawn = Callable[[str], "subprocess.Popen[str]"]
PROCESSES, JOBS = 4, 50

IMPORTS = """
import json, sys, time
from service.jobs.job import TextToImage
"""
COMPLETE = """
from service.jobs.job import Result
for lease in store.claim("doomed", 1000, 60):
    result = Result(content_sha256=lease.job.id, media_type="image/png", seed=7, numerics_id="x")
    assert store.complete(lease.id, [result])
    print(json.dumps(lease.job.id))
"""
CLAIM = """
claimed = []
while leases := store.claim({worker!r}, 3, 60):
    for lease in leases:
        assert store.complete(lease.id, [])
        claimed.append(lease.job.id)
print(json.dumps(claimed))
"""


def check_nothing_is_lost(told: Sequence[str], kept: Sequence[str]) -> None:
    """Raise AssertionError unless what was told is there, and at most one more: the call that was under way."""
    assert set(told) <= set(kept), f"{len(set(told) - set(kept))} of {len(told)} are lost"
    assert len(kept) <= len(told) + 1


def check_each_once(claims: Sequence[Sequence[str]], submitted: Sequence[str]) -> None:
    """Raise AssertionError unless every submitted job was claimed by exactly one process, exactly once."""
    assert Counter(job_id for claim in claims for job_id in claim) == Counter(submitted)
    assert len(set(submitted)) == len(submitted)


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def hear(child: subprocess.Popen[str]) -> Any:
    assert child.stdout is not None
    return json.loads(child.stdout.readline())


def heard(child: subprocess.Popen[str]) -> list[Any]:
    """All that it still told, but for a line that it could not end."""
    assert child.stdout is not None
    return [json.loads(line) for line in child.stdout if line.endswith("\n")]


def test_processes_open_submit_and_claim_at_once(backend: Any, tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    """All steps in one test, since starting four processes is what costs."""
    children = []
    for index in range(PROCESSES):
        mine = [picture(seed=seed).model_dump_json() for seed in range(index, JOBS, PROCESSES)]
        text = IMPORTS + "print(0)\nsys.stdin.readline()\n" + backend.source(tmp_path)
        text += f"jobs = [store.submit(TextToImage.model_validate_json(text)).id for text in {mine!r}]\n"
        text += f"request = TextToImage.model_validate_json({picture().model_dump_json()!r})\n"
        text += "same = store.submit(request, 'key').id\n"
        text += "print(json.dumps([jobs, same]))\nsys.stdin.readline()\n" + CLAIM.format(worker=f"w{index}")
        children.append(spawn(text))
    for child in children:
        assert hear(child) == 0
    for child in children:
        tell(child)
    answers = [hear(child) for child in children]
    (same,) = {same for _, same in answers}
    submitted = [job_id for jobs, _ in answers for job_id in jobs] + [same]
    for child in children:
        tell(child)
    claims = [hear(child) for child in children]
    assert len(submitted) == JOBS + 1
    check_each_once(claims, submitted)
    store = backend.open(tmp_path, lambda: 0.0, 10)
    assert (store.stats().queued, store.stats().running) == (0, 0)
    assert {job.state for job in store.list(100)} == {JobState.COMPLETED}
    store.close()


@pytest.mark.parametrize("claims", [[["a"], ["b", "a"]], [["a"], []], [["a", "b", "c"]]])
def test_control_the_claim_check_refuses(claims: list[list[str]]) -> None:
    check_each_once([["b"], ["a"]], ["a", "b"])
    with pytest.raises(AssertionError):
        check_each_once(claims, ["a", "b"])


def test_kill_right_after_submit_returned(backend: Any, tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    """The child submits as fast as it can and tells each id; what it told before the kill must be there, whole."""
    request = f"request = TextToImage.model_validate_json({picture().model_dump_json()!r})\n"
    loop = "while True:\n    print(json.dumps(store.submit(request).id))\n"
    child = spawn(IMPORTS + backend.source(tmp_path) + request + loop)
    told = [hear(child) for _ in range(20)]
    child.kill()
    assert child.wait(10) == -9
    told += heard(child)
    store = backend.open(tmp_path, lambda: 5e9, 100_000)
    kept = [job.id for job in store.list(100_000)]
    check_nothing_is_lost(told, kept)
    assert store.stats().queued == len(kept)
    assert store.get(told[0]).request == picture()
    check_each_once([[lease.job.id for lease in store.claim("w1", 100_000, 60)]], kept)
    store.close()


def test_kill_right_after_complete_returned(backend: Any, tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    """What was told to be completed is, with its result and once; the rest goes back to the queue."""
    store = backend.open(tmp_path, lambda: 5e9, 1000)
    jobs = [store.submit(picture()).id for _ in range(300)]
    child = spawn(IMPORTS + backend.source(tmp_path) + COMPLETE)
    told = [hear(child) for _ in range(20)]
    child.kill()
    child.wait(10)
    told += heard(child)
    ended = {job.id: job for job in store.list(1000, state=JobState.COMPLETED)}
    check_nothing_is_lost(told, list(ended))
    assert all([result.content_sha256 for result in job.results] == [job.id] for job in ended.values())
    assert store.referenced(jobs) == ended.keys()
    assert store.reap("doomed") == len(jobs) - len(ended)
    leases = store.claim("w2", 1000, 60)
    assert {lease.job.id for lease in leases} == set(jobs) - ended.keys()
    assert all(store.complete(lease.id, []) for lease in leases)
    assert store.stats().ended == {JobState.COMPLETED: 300}
    store.close()


def test_control_calls_that_are_not_yet_durable_are_lost(tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    """A store that answers before it commits: the check above must see it."""
    store = SQLiteStore(tmp_path / "jobs.db")
    early = """
db = store._writer._db
db.execute("BEGIN IMMEDIATE")
def run(operation):
    return operation(db)
store._writer.run = run
"""
    request = f"request = TextToImage.model_validate_json({picture().model_dump_json()!r})\n"
    loop = "while True:\n    print(json.dumps(store.submit(request).id))\n"
    child = spawn(IMPORTS + SQLITE.source(tmp_path) + early + request + loop)
    told = [hear(child) for _ in range(20)]
    child.kill()
    child.wait(10)
    with pytest.raises(AssertionError, match="are lost"):
        check_nothing_is_lost(told, [job.id for job in store.list(1000)])
    store.close()


def test_kill_of_a_worker_gives_its_jobs_back(backend: Any, tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    store = backend.open(tmp_path, lambda: 5e9, 10)
    ids = [store.submit(picture()).id for _ in range(3)]
    claim = "print(json.dumps([lease.id for lease in store.claim('doomed', 2, 60)]))\ntime.sleep(60)\n"
    child = spawn(IMPORTS + backend.source(tmp_path) + claim)
    stale = hear(child)
    child.kill()
    child.wait(10)
    assert store.reap("doomed") == 2
    assert [lease.job.id for lease in store.claim("w2", 3, 60)] == ids
    assert [store.complete(lease_id, []) for lease_id in stale] == [False, False]
    store.close()
