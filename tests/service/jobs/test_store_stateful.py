"""Random lives of jobs: whatever the calls and their order, every job ends exactly once and stays as it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.errors import IdempotencyConflict, QueueFull
from service.jobs.job import ImageToImage, Job, JobError, JobState, Lease, Priority, Result, TextToImage
from service.jobs.sqlite import SQLiteStore
from service.jobs.store import HEAD_START_S, MAX_ATTEMPTS, JobStore, references
from tests.service.jobs.history import Snapshot, check_history

RESULT = Result(content_sha256="ab" * 32, media_type="image/png", seed=7, numerics_id="cpu-fp32")
ERROR = JobError(code="broken", message="broken")
MAX_QUEUED = 5
QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING


class StoreMachine(RuleBasedStateMachine):
    """Random calls on a store, with a model of which leases are held."""

    def __init__(self, store: JobStore, clock: Any, request: TextToImage) -> None:
        super().__init__()
        self.store, self.clock = store, clock
        self.request = ImageToImage(**request.model_dump(exclude={"task"}), image="input", strength=0.5)
        self.history: list[Snapshot] = [{}]
        self.ends: list[str] = []
        self.leases: list[Lease] = []  # every lease ever given
        self.held: dict[str, tuple[str, str, float]] = {}  # lease id -> job id, worker, expiry
        self.keys: dict[str, tuple[str, Priority]] = {}
        self.turns: dict[str, float] = {}  # job id -> when it is its turn
        self.deleted_ends: Counter[JobState] = Counter()

    def pick(self, index: int) -> Lease | None:
        return self.leases[-1 - index % len(self.leases)] if self.leases else None

    def let_go(self, job_id: str) -> None:
        self.held = {lease_id: held for lease_id, held in self.held.items() if held[0] != job_id}

    def late(self, job: Job) -> bool:
        return job.deadline_at is not None and job.deadline_at <= self.clock.now

    def late_ended(self) -> Snapshot:
        """The last snapshot, with what is queued and late ended."""
        ended = {"state": JobState.EXPIRED, "finished_at": self.clock.now, "checkpoint": None}
        return {
            job_id: job.model_copy(update=ended) if job.state is QUEUED and self.late(job) else job
            for job_id, job in self.history[-1].items()
        }

    def snapshot(self) -> None:
        after = {job.id: job for job in self.store.list(1000)}
        self.history.append(after)

    def expire(self) -> None:
        """What is queued and late has ended by now."""
        late = [job_id for job_id, job in self.history[-1].items() if job.state is QUEUED and self.late(job)]
        self.ends += late

    @initialize()
    def begin(self) -> None:
        """Something for every rule to work on; most short lives would have nothing."""
        for priority in Priority:
            self.submit(None, priority, None)
        self.claim("w1", 1)
        self.claim("w2", 1)

    @rule(
        key=st.sampled_from([None, None, "a", "b"]),
        priority=st.sampled_from(Priority),
        deadline_s=st.sampled_from([None, 5.0, 30.0]),
    )
    def submit(self, key: str | None, priority: Priority, deadline_s: float | None) -> None:
        full = self.store.stats().queued >= MAX_QUEUED
        deadline_s = None if key else deadline_s
        try:
            job = self.store.submit(self.request, key, priority=priority, deadline_s=deadline_s)
        except QueueFull:
            assert full and key not in self.keys
            return
        except IdempotencyConflict:
            assert key is not None and self.keys[key][1] is not priority
            return
        if key is not None:
            assert self.keys.setdefault(key, (job.id, priority)) == (job.id, priority)
        assert not full or key in self.keys
        self.turns.setdefault(job.id, self.clock.now + HEAD_START_S[priority])
        self.snapshot()

    @rule(worker=st.sampled_from(["w1", "w2"]), limit=st.integers(1, 3))
    def claim(self, worker: str, limit: int) -> None:
        if limit > 0 and any(job.state is QUEUED for job in self.history[-1].values()):
            self.expire()
            self.history.append(self.late_ended())
        waiting = sorted(
            (job_id for job_id, job in self.history[-1].items() if job.state is QUEUED),
            key=lambda job_id: (self.turns[job_id], job_id),
        )
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
            self.let_go(lease.job.id)
        self.snapshot()

    @rule(index=st.integers(0, 4))
    def cancel(self, index: int) -> None:
        ids = sorted(self.history[-1])
        if not ids:
            return
        job_id = ids[-1 - index % len(ids)]
        if not self.history[-1][job_id].state.final:
            self.ends.append(job_id)
            self.let_go(job_id)
        assert self.store.cancel(job_id) is not None
        self.snapshot()

    @rule(index=st.integers(0, 4))
    def delete(self, index: int) -> None:
        """As if it had never been, but for the count of ends."""
        ids = sorted(self.history[-1])
        if len(ids) < 3:
            return
        job_id = ids[-1 - index % len(ids)]
        before = self.history[-1][job_id]
        job = self.store.delete(job_id)
        assert job is not None and job.state is (before.state if before.state.final else JobState.CANCELLED)
        self.deleted_ends[job.state] += 1
        self.let_go(job_id)
        self.keys = {key: known for key, known in self.keys.items() if known[0] != job_id}
        self.ends = [end for end in self.ends if end != job_id]
        self.history = [{key: job for key, job in one.items() if key != job_id} for one in self.history]
        self.snapshot()

    @rule(index=st.integers(0, 4))
    def checkpoint(self, index: int) -> None:
        lease = self.pick(index)
        if lease is not None:
            assert self.store.checkpoint(lease.id, lease.id) == (lease.id in self.held)
            self.snapshot()

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def release(self, worker: str) -> None:
        mine = [job_id for job_id, holder, _ in self.held.values() if holder == worker]
        before = self.history[-1]
        assert self.store.release(worker) == len(mine)
        self.snapshot()
        for job_id in mine:
            self.let_go(job_id)
            assert self.history[-1][job_id].attempts == before[job_id].attempts - 1

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
            self.let_go(job_id)
            if self.history[-1][job_id].attempts >= MAX_ATTEMPTS or self.late(self.history[-1][job_id]):
                self.ends.append(job_id)
        self.expire()
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
        assert {priority: queue.queued for priority, queue in stats.classes.items()} == Counter(
            job.priority for job in waiting
        )
        ended = Counter(job.state for job in self.history[-1].values() if job.state.final)
        assert stats.ended == ended + self.deleted_ends
        names = {job.checkpoint for job in self.history[-1].values() if job.checkpoint}
        names |= {name for job in self.history[-1].values() for name in references(job)}
        assert self.store.referenced([RESULT.content_sha256, "input", *(lease.id for lease in self.leases)]) == names
        turn = sorted(waiting, key=lambda job: (self.turns[job.id], job.id))
        assert [self.store.position(job.id) for job in turn] == list(range(len(turn)))

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
    backend: Any,
    folder: Path,
    clock: Any,
    request: TextToImage,
    wrap: Callable[[JobStore], JobStore],
    examples: int = 12,
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
            max_examples=examples,
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
    # A flush a call makes the durable server slow; it runs the same scripts.
    run_machine(backend, tmp_path, clock, picture(), lambda store: store, 2 if backend.name == "redis-always" else 12)


class Faulty:
    """A store with one fault, which the machine above must find."""

    def __init__(self, store: JobStore, fault: str) -> None:
        self._store, self._fault, self._stale = store, fault, dict[str, str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(self, worker: str, limit: int, lease_s: float) -> list[Lease]:
        leases = self._store.claim(worker, limit, lease_s)
        return leases[::-1] if self._fault == "newest first" else leases

    def release(self, worker: str) -> int:
        return self._store.reap(worker) if self._fault == "release is an attempt" else self._store.release(worker)

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


@pytest.mark.parametrize("fault", ["newest first", "stale lease accepted", "cancel is undone", "release is an attempt"])
def test_control_the_machine_finds_faults(
    tmp_path: Path, clock: Any, picture: Callable[..., TextToImage], fault: str
) -> None:
    backend = SimpleNamespace(open=lambda folder, *_: SQLiteStore(folder / "jobs.db", MAX_QUEUED, clock))

    def wrap(store: JobStore) -> Any:
        return Faulty(store, fault)

    with pytest.raises(AssertionError):
        run_machine(backend, tmp_path, clock, picture(), wrap)
