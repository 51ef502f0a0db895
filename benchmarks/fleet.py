"""Many workers on one queue in virtual time: the order of the store's claims around the real choice of batches."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.virtual import Kind, VirtualJob, VirtualModel, VirtualWorker
from service.jobs.store import HEAD_START_S, MAX_ATTEMPTS

MAX_JOBS = 64


@dataclass(frozen=True)
class Plan:
    """What a fleet is, and how its workers claim."""

    models: Mapping[str, VirtualModel]
    workers: int
    memory_size: int
    ahead_s: float
    """A worker claims while what it holds is less work than this, alone, and at most :data:`MAX_JOBS`."""
    patience_s: float | None = None
    """A worker with work claims only jobs of the model it has in memory, and none when another job is due for so long;
    one without work claims these first; and of idle workers one that has the model hears of a job first. None: jobs are
    claimed as they come."""
    life_s: float = float("inf")
    """Mean time until a worker is killed; another takes its place at once."""
    lease_s: float = 30.0
    """What a killed worker held comes back to the queue after this time."""


@dataclass
class Day:
    """What came of the jobs."""

    completed: list[VirtualJob] = field(default_factory=list)
    expired: list[VirtualJob] = field(default_factory=list)
    failed: list[VirtualJob] = field(default_factory=list)
    loads: int = 0
    busy_s: float = 0.0
    killed: int = 0
    requeued: int = 0


class _Queue:
    """The store's order: acceptance and head start, a sorted queue for each model."""

    def __init__(self, models: Mapping[str, VirtualModel], day: Day) -> None:
        self._heaps: dict[str, list[tuple[float, int, VirtualJob]]] = {model: [] for model in models}
        self._day = day

    def add(self, job: VirtualJob) -> None:
        due = job.arrived_at + HEAD_START_S[job.kind.priority]
        heapq.heappush(self._heaps[job.kind.model], (due, job.number, job))

    def overdue_s(self, now: float) -> float:
        """How long the first of all jobs is due."""
        return now - min((heap[0][0] for heap in self._heaps.values() if heap), default=now)

    def first(self) -> str:
        """The model of the first of all jobs, of which there is one."""
        return min(heap[0] for heap in self._heaps.values() if heap)[-1].kind.model

    def claim(self, models: Sequence[str], now: float) -> VirtualJob | None:
        while heads := [self._heaps[model] for model in models if self._heaps[model]]:
            *_, job = heapq.heappop(min(heads))
            if job.kind.deadline_s is not None and now > job.arrived_at + job.kind.deadline_s and not job.attempts:
                self._day.expired.append(job)
                continue
            job.attempts += 1
            return job
        return None

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))


class Fleet:
    """Workers, each with a clock of its own, moved in the order of their clocks."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._random, self.day = plan, random.Random(seed), Day()
        self._queue = _Queue(plan.models, self.day)
        self._workers = [self._new(0.0) for _ in range(plan.workers)]
        self._dies_at = [self._lifetime() for _ in range(plan.workers)]
        self._idle: dict[str, list[int]] = {"": list(range(plan.workers)), **{model: [] for model in plan.models}}
        self._events: list[tuple[float, int, int]] = []  # time, tie, worker; or -1: jobs come back
        self._back: deque[tuple[float, list[VirtualJob]]] = deque()
        self._ties = itertools.count()

    def run(self, arrivals: Sequence[VirtualJob]) -> Day:
        """All jobs, in the order of their arrival, until each has ended."""
        for job in arrivals:
            self._until(job.arrived_at)
            self._queue.add(job)
            self._wake(job.arrived_at)
        self._until(float("inf"))
        for worker in self._workers:
            self._retire(worker)
        return self.day

    def _until(self, time: float) -> None:
        while self._events and self._events[0][0] <= time:
            now, _, number = heapq.heappop(self._events)
            if number < 0:
                _, jobs = self._back.popleft()
                for job in jobs:
                    self._queue.add(job)
                self._wake(now)
            else:
                self._move(number, now)

    def _wake(self, now: float) -> None:
        while len(self._queue) and any(self._idle.values()):
            wanted = self._idle[self._queue.first()] if self._plan.patience_s is not None else []
            idle = wanted or max(self._idle.values(), key=len)
            number = idle.pop()
            self._workers[number].now = now
            self._move(number, now)

    def _move(self, number: int, now: float) -> None:
        worker = self._workers[number]
        if now >= self._dies_at[number]:
            worker = self._kill(number, now)
        self._claim(worker, now)
        if not worker.jobs:
            self._idle[self._held(worker)].append(number)
            return
        self.day.completed += worker.turn(now + 1.0)
        heapq.heappush(self._events, (worker.now, next(self._ties), number))

    def _claim(self, worker: VirtualWorker, now: float) -> None:
        held, patience_s = self._held(worker), self._plan.patience_s
        held_s = sum(worker.job_s(job.kind) for job in worker.jobs.values())
        while held_s < self._plan.ahead_s and len(worker.jobs) < MAX_JOBS:
            job = None
            if held and patience_s is not None and self._queue.overdue_s(now) < patience_s:
                job = self._queue.claim([held], now)
            if job is None and (patience_s is None or not worker.jobs):
                job = self._queue.claim(list(self._plan.models), now)
            if job is None:
                return
            worker.add(job)
            held_s += worker.job_s(job.kind)

    def _held(self, worker: VirtualWorker) -> str:
        """The model that a worker has in memory; empty for none."""
        return next((model for model in self._plan.models if worker.holds(model)), "")

    def _kill(self, number: int, now: float) -> VirtualWorker:
        worker = self._workers[number]
        self._retire(worker)
        self.day.killed += 1
        self._dies_at[number] = now + self._lifetime()
        back = [job for job in worker.jobs.values() if job.attempts < MAX_ATTEMPTS]
        self.day.failed += [job for job in worker.jobs.values() if job.attempts >= MAX_ATTEMPTS]
        self.day.requeued += len(back)
        if back:
            self._back.append((now + self._plan.lease_s, back))
            heapq.heappush(self._events, (now + self._plan.lease_s, next(self._ties), -1))
        self._workers[number] = self._new(now)
        return self._workers[number]

    def _new(self, now: float) -> VirtualWorker:
        worker = VirtualWorker(self._plan.models, self._plan.memory_size)
        worker.now = now
        return worker

    def _retire(self, worker: VirtualWorker) -> None:
        self.day.loads += worker.loads
        self.day.busy_s += worker.busy_s

    def _lifetime(self) -> float:
        life_s = self._plan.life_s
        return self._random.expovariate(1 / life_s) if life_s < float("inf") else life_s


def poisson(kinds: Mapping[Kind, float], rates: Sequence[float], hour_s: float, seed: int) -> list[VirtualJob]:
    """Poisson arrivals of a mix.

    Args:
        kinds: kinds with their shares.
        rates: jobs a second, of one hour after the other.
        hour_s: what an hour is, for short versions.
        seed: of the draws.
    """
    draws = random.Random(seed)
    names, shares = list(kinds), list(kinds.values())
    arrivals = []
    for hour, rate in enumerate(rates):
        at = hour * hour_s
        while (at := at + draws.expovariate(rate)) < (hour + 1) * hour_s:
            arrivals.append(VirtualJob(draws.choices(names, shares)[0], at))
    return arrivals
