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
from service.jobs.store import QueueStats

Picture = Callable[..., TextToImage]
Spawn = Callable[[str], "subprocess.Popen[str]"]
PROCESSES, JOBS = 4, 50

IMPORTS = """
import json, sys, time
from service.jobs.job import TextToImage
"""
CLAIM = """
claimed = []
while leases := store.claim({worker!r}, 3, 60):
    for lease in leases:
        assert store.complete(lease.id, [])
        claimed.append(lease.job.id)
print(json.dumps(claimed))
"""


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
    assert store.stats() == QueueStats(queued=0, running=0, oldest_queued_at=None)
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
    assert child.stdout is not None
    told += [json.loads(line) for line in child.stdout if line.endswith("\n")]
    store = backend.open(tmp_path, lambda: 1e10, 100_000)
    kept = [job.id for job in store.list(100_000)]
    assert kept[::-1][: len(told)] == told
    assert len(kept) - len(told) in (0, 1), "at most the submit that was under way"
    assert store.stats().queued == len(kept)
    assert store.get(told[0]).request == picture()
    check_each_once([[lease.job.id for lease in store.claim("w1", 100_000, 60)]], kept)
    store.close()


def test_kill_of_a_worker_gives_its_jobs_back(backend: Any, tmp_path: Path, picture: Picture, spawn: Spawn) -> None:
    store = backend.open(tmp_path, lambda: 1e10, 10)
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
