"""Random lives of jobs: whatever the calls and their order, every job ends exactly once and stays as it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.errors import QueueFull
from service.jobs.job import Job, JobError, JobState, Lease, Result, TextToImage
from service.jobs.store import MAX_ATTEMPTS, JobStore

RESULT = Result(content_sha256="ab" * 32, media_type="image/png", seed=7, numerics_id="cpu-fp32")
ERROR = JobError(code="broken", message="broken")
MAX_QUEUED = 5
QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING
ALLOWED = {QUEUED: {QUEUED, RUNNING, JobState.CANCELLED, JobState.EXPIRED}, RUNNING: set(JobState)}

Snapshot = Mapping[str, Job]


def check_history(history: Sequence[Snapshot], ends: Iterable[str]) -> None:
    """Raise AssertionError unless ``history`` (all jobs after each call) and ``ends`` (the job of every call that said
    it ended one) tell of jobs that move as they may and end exactly once."""
    for before, after in zip(history, history[1:], strict=False):
        assert before.keys() <= after.keys(), "a job has vanished"
        for job_id, old in before.items():
            new = after[job_id]
            if old.state.final:
                assert new == old, f"job {job_id} changed after its end"
                continue
            assert new.state in ALLOWED[old.state], f"job {job_id} went from {old.state} to {new.state}"
            claimed = old.state is QUEUED and new.state is RUNNING
            assert new.attempts == old.attempts + claimed <= MAX_ATTEMPTS, f"job {job_id} has miscounted attempts"
            assert new.state.final == (new.finished_at is not None)
    final = sorted(job_id for job_id, job in history[-1].items() if job.state.final)
    assert sorted(ends) == final, "a job ended never or twice"


class StoreMachine(RuleBasedStateMachine):
    """Random calls on a store, with a model of which leases are held."""

    def __init__(self, store: JobStore, clock: Any, request: TextToImage) -> None:
        super().__init__()
        self.store, self.clock, self.request = store, clock, request
        self.history: list[Snapshot] = [{}]
        self.ends: list[str] = []
        self.leases: list[Lease] = []  # every lease ever given
        self.held: dict[str, tuple[str, str, float]] = {}  # lease id -> job id, worker, expiry
        self.keys: dict[str, str] = {}

    def pick(self, index: int) -> Lease | None:
        return self.leases[-1 - index % len(self.leases)] if self.leases else None

    def release(self, job_id: str) -> None:
        self.held = {lease_id: held for lease_id, held in self.held.items() if held[0] != job_id}

    def snapshot(self) -> None:
        after = {job.id: job for job in self.store.list(1000)}
        self.history.append(after)

    @rule(key=st.sampled_from([None, None, "a", "b"]))
    def submit(self, key: str | None) -> None:
        full = self.store.stats().queued >= MAX_QUEUED
        try:
            job = self.store.submit(self.request, key)
        except QueueFull:
            assert full and key not in self.keys
            return
        if key is not None:
            assert self.keys.setdefault(key, job.id) == job.id
        assert not full or key in self.keys
        self.snapshot()

    @rule(worker=st.sampled_from(["w1", "w2"]), limit=st.integers(0, 3))
    def claim(self, worker: str, limit: int) -> None:
        waiting = sorted(job_id for job_id, job in self.history[-1].items() if job.state is QUEUED)
        leases = self.store.claim(worker, limit, 10)
        assert [lease.job.id for lease in leases] == waiting[:limit]
        self.leases += leases
        self.held |= {lease.id: (lease.job.id, worker, lease.expires_at) for lease in leases}
        self.snapshot()

    @rule(index=st.integers(0, 4), fail=st.booleans())
    def finish(self, index: int, fail: bool) -> None:
        lease = self.pick(index)
        if lease is None:
            return
        done = self.store.fail(lease.id, ERROR) if fail else self.store.complete(lease.id, [RESULT])
        assert done == (lease.id in self.held)
        if done:
            self.ends.append(lease.job.id)
            self.release(lease.job.id)
        self.snapshot()

    @rule(index=st.integers(0, 4))
    def cancel(self, index: int) -> None:
        ids = sorted(self.history[-1])
        if not ids:
            return
        job_id = ids[-1 - index % len(ids)]
        if not self.history[-1][job_id].state.final:
            self.ends.append(job_id)
            self.release(job_id)
        assert self.store.cancel(job_id) is not None
        self.snapshot()

    @rule()
    def renew(self) -> None:
        ids = [lease.id for lease in self.leases]
        assert self.store.renew(ids, 10) == self.held.keys()
        self.held = {lease_id: (job, worker, self.clock.now + 10) for lease_id, (job, worker, _) in self.held.items()}

    @rule(worker=st.sampled_from([None, "w1", "w2"]))
    def reap(self, worker: str | None) -> None:
        lost = {
            job_id
            for job_id, holder, expires_at in self.held.values()
            if (expires_at <= self.clock.now if worker is None else holder == worker)
        }
        assert self.store.reap(worker) == len(lost)
        for job_id in lost:
            self.release(job_id)
            if self.history[-1][job_id].attempts >= MAX_ATTEMPTS:
                self.ends.append(job_id)
        self.snapshot()

    @rule(seconds=st.sampled_from([1.0, 6.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def stats_agree(self) -> None:
        waiting = [job for job in self.history[-1].values() if job.state is QUEUED]
        stats = self.store.stats()
        assert stats.queued == len(waiting)
        assert stats.running == len(self.held)
        assert stats.oldest_queued_at == min((job.created_at for job in waiting), default=None)

    def teardown(self) -> None:
        try:
            check_history(self.history, self.ends)
            self.clock.now += 1000
            self.reap(None)
            while any(not job.state.final for job in self.history[-1].values()):
                self.claim("w1", 3)
                for index in range(3):
                    self.finish(index, fail=False)
            check_history(self.history, self.ends)
        finally:
            self.store.close()


def run_machine(
    backend: Any, folder: Path, clock: Any, request: TextToImage, wrap: Callable[[JobStore], JobStore]
) -> None:
    made = 0

    def machine() -> StoreMachine:
        nonlocal made
        made += 1
        return StoreMachine(wrap(backend.open(folder / str(made), clock, MAX_QUEUED)), clock, request)

    factory: Any = machine  # hypothesis takes any callable; its annotation wants a class
    run_state_machine_as_test(
        factory,
        settings=settings(
            max_examples=20,
            report_multiple_bugs=False,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_job_ends_exactly_once(
    backend: Any, tmp_path: Path, clock: Any, picture: Callable[..., TextToImage]
) -> None:
    run_machine(backend, tmp_path, clock, picture(), lambda store: store)


class Faulty:
    """A store with one fault, which the machine above must find."""

    def __init__(self, store: JobStore, fault: str) -> None:
        self._store, self._fault, self._stale = store, fault, dict[str, str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(self, worker: str, limit: int, lease_s: float) -> list[Lease]:
        leases = self._store.claim(worker, limit, lease_s)
        if self._fault == "newest first":
            return leases[::-1]
        return leases

    def complete(self, lease_id: str, results: Sequence[Result]) -> bool:
        done = self._store.complete(lease_id, results)
        return True if self._fault == "stale lease accepted" else done

    def list(self, limit: int) -> list[Job]:
        jobs = self._store.list(limit)
        if self._fault == "cancel is undone":
            return [
                job.model_copy(update={"state": QUEUED}) if job.state is JobState.CANCELLED else job for job in jobs
            ]
        return jobs


@pytest.mark.parametrize("fault", ["newest first", "stale lease accepted", "cancel is undone"])
def test_control_the_machine_finds_faults(
    backend: Any, tmp_path: Path, clock: Any, picture: Callable[..., TextToImage], fault: str
) -> None:
    def wrap(store: JobStore) -> Any:
        return Faulty(store, fault)

    with pytest.raises(AssertionError):
        run_machine(backend, tmp_path, clock, picture(), wrap)


def _life(picture: Callable[..., TextToImage]) -> tuple[list[dict[str, Job]], list[str]]:
    queued = Job(id="j", request=picture(), state=QUEUED, created_at=1)
    running = queued.model_copy(update={"state": RUNNING, "attempts": 1, "started_at": 2.0})
    done = running.model_copy(update={"state": JobState.COMPLETED, "finished_at": 3.0, "results": (RESULT,)})
    return [{}, {"j": queued}, {"j": running}, {"j": done}, {"j": done}], ["j"]


def test_control_the_checker_refuses_tampered_histories(picture: Callable[..., TextToImage]) -> None:
    history, ends = _life(picture)
    check_history(history, ends)
    done, running = history[-1]["j"], history[2]["j"]
    for tampered, told in [
        (history, ["j", "j"]),  # ended twice
        (history, []),  # ended without anybody saying so
        ([*history, {"j": running}], []),  # came back to life
        ([*history, {"j": done.model_copy(update={"results": (RESULT, RESULT)})}], ends),  # completed again
        ([*history, {}], []),  # vanished
        ([history[1], history[3]], ends),  # completed without a worker
        ([history[1], {"j": running.model_copy(update={"attempts": 0})}], []),  # claimed without being counted
        ([history[2], {"j": done.model_copy(update={"finished_at": None})}], ends),  # ended at no time
    ]:
        with pytest.raises(AssertionError):
            check_history(tampered, told)
