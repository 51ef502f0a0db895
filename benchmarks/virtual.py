"""A worker and its device in virtual time, around the real choice of batches. No torch, no clock, no store."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from service.jobs.job import Priority
from service.worker.batch import Batch, BatchKey, Costs, Item, Limits, Stage, next_batch
from service.worker.memory import Home, Memory


class Policy(Protocol):
    """What chooses the next batch: :func:`service.worker.batch.next_batch`, or a control."""

    def __call__(
        self, items: Sequence[Item], costs: Costs, limits: Limits, now: float, *, resident: Memory
    ) -> Batch | None: ...


@dataclass(frozen=True)
class VirtualModel:
    """A model as the scheduler sees it: one network and the prices of its passes, in seconds."""

    load_s: float
    encode_s: float
    pass_s: float
    lane_s: float
    decode_s: float
    max_lanes: int = 16
    size: int = 1

    def seconds(self, stage: Stage, lanes: int) -> float:
        """Of one pass."""
        if stage is Stage.DENOISE:
            return self.pass_s + self.lane_s * lanes
        return lanes * (self.encode_s if stage is Stage.ENCODE else self.decode_s)


@dataclass(frozen=True)
class Kind:
    """What a client asks for."""

    model: str
    steps: int
    lanes: int = 2
    priority: Priority = Priority.STANDARD
    deadline_s: float | None = None


@dataclass(slots=True)
class VirtualJob:
    """One job of one row. Times are virtual seconds."""

    kind: Kind
    arrived_at: float
    begun_at: float | None = None
    ended_at: float | None = None
    attempts: int = 0
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def waited_s(self) -> float:
        """From arrival to the first pass."""
        return (self.begun_at or self.arrived_at) - self.arrived_at

    @property
    def latency_s(self) -> float:
        """From arrival to the end."""
        return (self.ended_at or self.arrived_at) - self.arrived_at


class VirtualWorker:
    """One device. Its clock is its own: ``now`` moves with every turn."""

    def __init__(
        self,
        models: Mapping[str, VirtualModel],
        memory_size: int | None = None,
        policy: Policy = next_batch,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        tenure: bool = True,
    ) -> None:
        """
        Args:
            models: what it can run, nothing of which is in memory.
            memory_size: how much is at the same time, in the models' unit of size.
            policy: chooses batches.
            limits: bounds of batches.
            tenure: whether a model that was loaded keeps its place for a while; False is a control.
        """
        self.now, self.loads, self.busy_s = 0.0, 0, 0.0
        self.jobs: dict[int, VirtualJob] = {}
        self._models, self._policy, self._limits, self._tenure = models, policy, limits, tenure
        self._homes = {name: Home(model.size, model.load_s) for name, model in models.items()}
        self._size = memory_size
        self._loading, self._loaded_at = frozenset[str](), 0.0
        self._items: dict[int, Item] = {}

    def seconds(self, key: BatchKey, lanes: int) -> float:
        """Price of a pass, exactly what it takes."""
        return self._models[key.model].seconds(key.stage, lanes)

    def job_s(self, kind: Kind) -> float:
        """Price of a whole job that shares no pass."""
        model = self._models[kind.model]
        passes_s = kind.steps * model.seconds(Stage.DENOISE, kind.lanes)
        return model.seconds(Stage.ENCODE, 1) + passes_s + model.seconds(Stage.DECODE, 1)

    def add(self, job: VirtualJob) -> None:
        """Take a job."""
        self.jobs[job.number] = job
        self._items[job.number] = self._item(job, Stage.ENCODE)

    def holds(self, model: str) -> bool:
        """Whether a model is in memory or on its way."""
        return self._homes[model].since is not None or model in self._loading

    def turn(self, until: float) -> list[VirtualJob]:
        """One batch, one load begun, or waiting until ``until``; the jobs that ended with it."""
        if self._loading and self._loaded_at <= self.now:
            self._arrive()
        memory = Memory(self._homes, self._size, self._loading)
        batch = self._policy(list(self._items.values()), self, self._limits, self.now, resident=memory)
        if batch is None:
            self.now = min(until, self._loaded_at) if self._loading else until
            return []
        if batch.key.stage is Stage.LOAD:
            self._load(batch)
            return []
        seconds = self.seconds(batch.key, batch.lanes)
        for number in batch.rows:
            job = self.jobs[number]
            job.begun_at = self.now if job.begun_at is None else job.begun_at
        self.now += seconds
        self.busy_s += seconds
        model = batch.key.model
        self._homes[model] = replace(self._homes[model], used_at=self.now)
        return [job for number in batch.rows if (job := self._advance(number, batch)) is not None]

    def _load(self, batch: Batch) -> None:
        for name in batch.evict:
            self._homes[name] = replace(self._homes[name], since=None)
        self._loading = frozenset(batch.load)
        self._loaded_at = self.now + sum(self._homes[name].load_s for name in batch.load)
        self.loads += len(batch.load)

    def _arrive(self) -> None:
        switch_s = sum(self._homes[name].load_s for name in self._loading)
        for name in self._loading:
            tenure_s = switch_s if self._tenure else 0.0
            self._homes[name] = replace(self._homes[name], since=self._loaded_at, switch_s=tenure_s)
        self._loading = frozenset()

    def _advance(self, number: int, batch: Batch) -> VirtualJob | None:
        item, job = self._items[number], self.jobs[number]
        if len(batch.rows) == 1 and batch.lanes < item.lanes:
            self._items[number] = replace(item, lanes=item.lanes - batch.lanes)
        elif item.evaluations > 1:
            self._items[number] = replace(item, evaluations=item.evaluations - 1, lanes=job.kind.lanes)
        elif item.key.stage is Stage.ENCODE:
            self._items[number] = self._item(job, Stage.DENOISE)
        elif item.key.stage is Stage.DENOISE:
            self._items[number] = self._item(job, Stage.DECODE)
        else:
            del self._items[number]
            job.ended_at = self.now
            return self.jobs.pop(number)
        return None

    def _item(self, job: VirtualJob, stage: Stage) -> Item:
        kind, steps = job.kind, stage is Stage.DENOISE
        key = BatchKey(stage, kind.model, stage, (), 0, "", self._models[kind.model].max_lanes)
        deadline_at = None if kind.deadline_s is None else job.arrived_at + kind.deadline_s
        return Item(
            row=job.number,
            key=key,
            lanes=kind.lanes if steps else 1,
            evaluations=kind.steps if steps else 1,
            arrived_at=job.arrived_at,
            priority=kind.priority,
            deadline_at=deadline_at,
            needs=(kind.model,),
        )


def run(worker: VirtualWorker, arrivals: Iterable[VirtualJob], until: float = float("inf")) -> list[VirtualJob]:
    """Give a worker its jobs as they arrive, in this order, until all have ended or ``until`` has come; those that
    ended."""
    ended: list[VirtualJob] = []
    waiting = iter(arrivals)
    coming = next(waiting, None)
    while (coming is not None or worker.jobs) and worker.now < until:
        while coming is not None and coming.arrived_at <= worker.now:
            worker.add(coming)
            coming = next(waiting, None)
        ended += worker.turn(until if coming is None else coming.arrived_at)
    return ended
