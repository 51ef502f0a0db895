"""The scheduler in virtual time: ``python -m benchmarks.simulation``. See README.md beside this file.

The choice of batches is the worker's own (``service.worker.batch``), the order of claims the stores' own; prices are
made up, of the size that SDXL has on a large GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.fleet import Day, Fleet, Plan, poisson
from benchmarks.report import RESULTS, Target, console, facts, percentile, print_rows, print_targets, save
from benchmarks.virtual import Kind, Policy, VirtualJob, VirtualModel, VirtualWorker, run
from service.jobs.job import Priority
from service.worker.batch import CLASS_WEIGHT, Batch, Costs, Item, Limits, next_batch
from service.worker.memory import Memory

SDXL = VirtualModel(load_s=10.0, encode_s=0.01, pass_s=0.02, lane_s=0.02, decode_s=0.05)
"""30 guided steps alone are 1.9 s, of which batching saves a quarter; a load is five times that."""
VIDEO = VirtualModel(load_s=10.0, encode_s=0.1, pass_s=0.0, lane_s=0.4, decode_s=2.0, max_lanes=2)
"""25 guided steps are 20 s, whatever they are batched with."""
LOADS_A_JOB = 0.1
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
LOADS = (0.7, 0.95, 1.3)
"""Of the runs with three classes; the last one is an overload."""
CLASSES: Mapping[Kind, float] = {
    Kind("turbo", 1, 1, Priority.INTERACTIVE): 0.5,
    Kind("turbo", 4, 1, Priority.INTERACTIVE, deadline_s=10.0): 0.1,
    Kind("sdxl", 30, 2, Priority.STANDARD): 0.3,
    Kind("sdxl", 30, 2, Priority.BATCH): 0.09,
    Kind("video", 25, 2, Priority.BATCH): 0.01,
}
DAY_RATES = tuple(1.0 + 0.6 * math.sin(2 * math.pi * (hour - 9) / 24) for hour in range(24))
"""Of an hour, in units of the day's mean: quiet at three at night, busy at three in the afternoon."""
FLEET_KINDS: Mapping[Kind, float] = {
    Kind("sdxl", 30, 2, Priority.INTERACTIVE, deadline_s=60.0): 0.25,
    Kind("tuned", 30, 2, Priority.STANDARD): 0.15,
    Kind("video", 30, 2, Priority.STANDARD): 0.3,
    Kind("video", 240, 2, Priority.BATCH): 0.3,
}
COARSE = 30
"""Steps that the fleet takes at once, so that a day of a thousand workers can be simulated. It makes passes of up to
half a minute, behind which others wait: waits are longer than they would be."""


def capacity(model: VirtualModel, kind: Kind) -> float:
    """Jobs a second of one worker whose batches are full."""
    rows = model.max_lanes // kind.lanes
    pass_s = model.pass_s + model.lane_s * rows * kind.lanes
    return 1.0 / (model.encode_s + model.decode_s + kind.steps * pass_s / rows)


def two_models(share: float, jobs: int, seed: int, popular: float = 0.5, **options: Any) -> dict[str, Any]:
    """Two models on a worker with memory for one, Poisson arrivals at a share of its capacity."""
    models = {"a": SDXL, "b": SDXL}
    kinds = {Kind("a", 30): popular, Kind("b", 30): 1 - popular}
    rate = share * capacity(SDXL, Kind("a", 30))
    worker = VirtualWorker(models, memory_size=1, **options)
    ended = run(worker, poisson(kinds, [rate], jobs / rate, seed))
    latencies = [job.latency_s for job in ended]
    return {
        "share": share,
        "popular": popular,
        "jobs": len(ended),
        "loads_a_job": round(worker.loads / len(ended), 4),
        "p50_s": round(percentile(latencies, 50), 2),
        "p95_s": round(percentile(latencies, 95), 2),
        "max_s": round(max(latencies), 2),
    }


def strict_classes(
    items: Sequence[Item], costs: Costs, limits: Limits, now: float, *, resident: Memory
) -> Batch | None:
    """The control: a class leads for as long as it has work."""
    best = max((CLASS_WEIGHT[item.priority] for item in items), default=0.0)
    return next_batch(
        [item for item in items if CLASS_WEIGHT[item.priority] == best], costs, limits, now, resident=resident
    )


def first_come(items: Sequence[Item], costs: Costs, limits: Limits, now: float, *, resident: Memory) -> Batch | None:
    """Another: the oldest leads."""
    alike = [replace(item, evaluations=1, priority=Priority.BATCH, deadline_at=None) for item in items]
    oldest = min((item.arrived_at for item in alike), default=0.0)
    return next_batch([item for item in alike if item.arrived_at == oldest], costs, limits, now, resident=resident)


def classes(share: float, seconds: float, seed: int, policy: Policy = next_batch) -> dict[str, dict[str, float]]:
    """Three classes on one worker with memory for all: latencies by class, those of unfinished jobs as they are."""
    models = {
        "turbo": replace(SDXL, load_s=0.0),
        "sdxl": replace(SDXL, load_s=0.0),
        "video": replace(VIDEO, load_s=0.0),
    }
    work_s = sum(part / capacity(models[kind.model], kind) for kind, part in CLASSES.items())
    arrivals = poisson(CLASSES, [share / work_s], seconds, seed)
    worker = VirtualWorker(models, policy=policy)
    run(worker, arrivals, until=seconds)
    found: dict[str, dict[str, float]] = {}
    for priority in Priority:
        jobs = [job for job in arrivals if job.kind.priority is priority and job.arrived_at < 0.9 * seconds]
        latencies = [job.latency_s if job.ended_at else seconds - job.arrived_at for job in jobs]
        found[priority] = {
            "jobs": len(jobs),
            "unfinished": sum(job.ended_at is None for job in jobs),
            "p50_s": round(percentile(latencies, 50), 3),
            "p95_s": round(percentile(latencies, 95), 3),
            "max_s": round(max(latencies), 3),
        }
    return found


def fleet_day(workers: int, hour_s: float, seed: int, **options: Any) -> dict[str, Any]:
    """A day of a fleet at 60 % of its capacity on average, and 96 % at its peak; workers are killed."""
    coarse = {"sdxl": _coarse(SDXL), "tuned": _coarse(SDXL), "video": _coarse(VIDEO)}
    kinds = {replace(kind, steps=kind.steps // COARSE): part for kind, part in FLEET_KINDS.items()}
    mean_s = sum(part / capacity(coarse[kind.model], kind) for kind, part in kinds.items())
    rates = [0.6 * workers / mean_s * rate for rate in DAY_RATES]
    arrivals = poisson(kinds, rates, hour_s, seed)
    plan = Plan(coarse, workers, memory_size=1, **options)
    day = Fleet(plan, seed).run(arrivals)
    return {**_counts(arrivals, day, workers * 24 * hour_s), **_by_class(day)}


def _coarse(model: VirtualModel) -> VirtualModel:
    return replace(model, pass_s=COARSE * model.pass_s, lane_s=COARSE * model.lane_s)


def _counts(arrivals: Sequence[VirtualJob], day: Day, worker_s: float) -> dict[str, Any]:
    ends = [job.number for job in (*day.completed, *day.expired, *day.failed)]
    return {
        "jobs": len(arrivals),
        "ended_once": len(set(ends)) == len(ends) == len(arrivals),
        "completed": len(day.completed),
        "expired": len(day.expired),
        "failed": len(day.failed),
        "killed": day.killed,
        "requeued": day.requeued,
        "loads_a_job": round(day.loads / len(arrivals), 4),
        "busy": round(day.busy_s / worker_s, 3),
    }


def _by_class(day: Day) -> dict[str, Any]:
    found = {}
    for priority in Priority:
        waits = [job.waited_s for job in day.completed if job.kind.priority is priority]
        found[priority.value] = {f"wait_p{p}_s": round(percentile(waits, p), 2) for p in (50, 95, 100)}
    return found


FLEETS: Mapping[str, dict[str, float]] = {
    "64 jobs ahead": {"ahead_s": math.inf},
    "5 s ahead": {"ahead_s": 5.0},
    "5 s ahead, own model first for 30 s": {"ahead_s": 5.0, "patience_s": 30.0},
}
"""Ways to claim; the last one has the whole day."""


def main(
    jobs: Annotated[int, typer.Option(help="Jobs of each run with two models.", min=100)] = 2000,
    seconds: Annotated[float, typer.Option(help="Virtual seconds of each run with three classes.", min=60)] = 1800.0,
    workers: Annotated[int, typer.Option(help="Workers of the fleet, a tenth of them to compare ways.", min=10)] = 1000,
    hour_s: Annotated[
        float, typer.Option(help="Seconds of an hour of the day, a sixth to compare ways.", min=60)
    ] = 3600.0,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 7,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "simulation.json",
) -> None:
    """Run the scheduler through a Poisson mix, an overload and a day."""
    thrash = [two_models(share, jobs, seed) for share in SHARES] + [two_models(0.8, jobs, seed, popular=0.9)]
    control = two_models(0.8, 300, seed, tenure=False, policy=first_come)
    print_rows("Two models, memory for one", tuple(thrash[0]), [tuple(row.values()) for row in thrash])
    print_rows("The oldest job leads", tuple(control), [tuple(control.values())])
    policies: dict[str, Policy] = {"ours": next_batch, "strict classes": strict_classes}
    fair = {
        name: {str(share): classes(share, seconds, seed, policy) for share in LOADS}
        for name, policy in policies.items()
    }
    print_rows("Classes: latency", ("policy", "load", "class", "jobs", "unfinished", "p50 s", "p95 s", "max s"), [
        (name, load, priority, *figures.values())
        for name, by_load in fair.items()
        for load, by_class in by_load.items()
        for priority, figures in by_class.items()
    ])  # fmt: skip
    days = {
        name: fleet_day(workers // 10, hour_s / 6, seed, life_s=2 * hour_s, **options)
        for name, options in FLEETS.items()
    }
    name, options = list(FLEETS.items())[-1]
    days[f"{name}: {workers} workers, whole day"] = fleet_day(workers, hour_s, seed, life_s=12 * hour_s, **options)
    for name, day in days.items():
        console.print(name, day)
    targets = [Target("loads a job at 80 % of capacity", thrash[SHARES.index(0.8)]["loads_a_job"], LOADS_A_JOB, False)]
    print_targets(targets)
    save(out, "simulation", {
        **facts(), "seed": seed, "prices": {"sdxl": asdict(SDXL), "video": asdict(VIDEO)},
        "two_models": thrash, "oldest_first": control, "classes": fair, "days": days,
        "targets": [target.to_json() for target in targets],
    })  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
