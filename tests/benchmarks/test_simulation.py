"""Short runs of the simulation: its claims hold, and its controls break them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fleet import Fleet, Plan, poisson
from benchmarks.simulation import LOADS_A_JOB, classes, first_come, fleet_day, strict_classes, two_models
from benchmarks.virtual import Kind, VirtualJob, VirtualModel, VirtualWorker, run
from service.jobs.job import Priority
from service.worker.memory import TENURE

QUICK = VirtualModel(load_s=2.0, encode_s=0.01, pass_s=0.05, lane_s=0.05, decode_s=0.02)


def test_one_job_takes_what_its_passes_take() -> None:
    worker = VirtualWorker({"a": QUICK})
    (job,) = run(worker, [VirtualJob(Kind("a", 10), arrived_at=5.0)])
    assert job.waited_s == pytest.approx(2.0) and job.latency_s == pytest.approx(2.0 + 0.01 + 10 * 0.15 + 0.02)
    assert worker.loads == 1 and worker.busy_s == pytest.approx(worker.job_s(job.kind))


def test_jobs_that_meet_share_passes() -> None:
    worker = VirtualWorker({"a": QUICK})
    ended = run(worker, [VirtualJob(Kind("a", 10), arrived_at=0.0) for _ in range(4)])
    assert len(ended) == 4 and worker.busy_s < 4 * worker.job_s(ended[0].kind) * 0.8


def test_two_models_with_memory_for_one_are_rarely_loaded() -> None:
    ours = two_models(0.8, 300, seed=1)
    assert ours["loads_a_job"] <= LOADS_A_JOB
    control = two_models(0.8, 60, seed=1, tenure=False, policy=first_come)
    assert control["loads_a_job"] > 3 * LOADS_A_JOB


def test_a_day_ends_every_job_once_though_workers_are_killed() -> None:
    day = fleet_day(10, 60.0, seed=3, ahead_s=5.0, patience_s=30.0, life_s=300.0)
    assert day["ended_once"] and day["killed"] > 10 and day["requeued"] > 0
    assert day["completed"] + day["failed"] + day["expired"] == day["jobs"] > 50


def test_a_fleet_whose_workers_live_too_short_fails_jobs_and_loses_none() -> None:
    kinds = {Kind("a", 100, deadline_s=20.0): 1.0}
    arrivals = poisson(kinds, [0.2], 200.0, seed=2)
    day = Fleet(Plan({"a": QUICK}, 1, 1, ahead_s=30.0, life_s=10.0), seed=2).run(arrivals)
    ended = [*day.completed, *day.failed, *day.expired]
    assert day.failed and day.expired and sorted(job.number for job in ended) == sorted(job.number for job in arrivals)
    assert all(job.attempts == 3 for job in day.failed)


def test_overload_by_class() -> None:
    ours, control = (classes(1.3, 240.0, 7, **policy) for policy in ({}, {"policy": strict_classes}))
    assert ours["interactive"]["p95_s"] < ours["standard"]["p95_s"] < ours["batch"]["p95_s"]
    assert ours["batch"]["unfinished"] < control["batch"]["unfinished"], "which leaves them to the end"


MODELS = ("a", "b", "c")
KIND = st.builds(
    Kind,
    st.sampled_from(MODELS),
    st.integers(1, 8),
    st.integers(1, 2),
    st.sampled_from(list(Priority)),
    st.none() | st.sampled_from([0.5, 5.0, 30.0]),
)


def finished_at(watched: Kind, neighbours: list[Kind], size: int, horizon_s: float, **options: object) -> float | None:
    """When a job ends among neighbours each of which is replaced as soon as it is done; None for not at all."""
    models = {name: replace(QUICK, load_s=1.0 + i, size=1 + i % 2) for i, name in enumerate(MODELS)}
    worker = VirtualWorker(models, memory_size=size, **options)  # type: ignore[arg-type]
    job = VirtualJob(watched, 0.0)
    worker.add(job)
    for kind in neighbours:
        worker.add(VirtualJob(kind, 0.0))
    while worker.now < horizon_s:
        for ended in worker.turn(horizon_s):
            if ended is job:
                return worker.now
            worker.add(VirtualJob(ended.kind, worker.now))
    return None


HORIZON_S = 64 * (TENURE + 2) * 3 * 3.0
"""Seconds within which every job is done: in at most as many turns of three models as the largest weight is times the
smallest, each with a tenure, a load and the end of what had begun."""


@settings(max_examples=25, deadline=None)
@given(KIND, st.lists(KIND, max_size=5), st.integers(2, 4))
def test_no_mix_starves_a_job_where_models_take_turns_in_memory(
    watched: Kind, neighbours: list[Kind], size: int
) -> None:
    assert finished_at(watched, neighbours, size, HORIZON_S) is not None


def test_strict_classes_starve_it_there() -> None:
    watched, urgent = Kind("a", 8, 2, Priority.BATCH), Kind("b", 2, 2, Priority.INTERACTIVE)
    among = partial(finished_at, watched, [urgent, urgent], 2)
    assert among(200.0, policy=strict_classes) is None
    assert among(200.0) is not None
