"""Darkroom against servers that others would write, on the same weights: ``python -m benchmarks.serving``.

Part ``cpu`` is a closed loop and measures processor seconds per picture; part ``latency`` is Poisson arrivals at shares
of the lock server's capacity; part ``video`` asks for turbo pictures while a clip is in the making. See README.md
beside this file.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.clips import always_a_clip, make_clip
from benchmarks.load import Request, Run, alike_requests, arrival_times, closed_loop, make_requests, open_loop
from benchmarks.pieces import Bench
from benchmarks.report import (
    RESULTS,
    ROOT,
    Target,
    console,
    document,
    facts,
    finite,
    percentile,
    print_rows,
    print_targets,
    save,
)
from benchmarks.segment import Segment, Work, difference, ratio, running
from benchmarks.servers import Setup
from benchmarks.serving_table import table
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings

CLIENTS = 16
BUSY, HALF = 0.8, 0.5
"""Arrivals of part ``latency``, as shares of what the lock server can do."""
CAPACITY_REQUESTS = 24
CPU_TARGETS = {("onnxruntime", "lock"): 0.45, ("onnxruntime", "litserve"): 0.65, ("torch", "lock"): 0.67}
SHORT_TARGETS = {"lock": 0.2, "closed": 0.4}
ALL_TARGET = 1.15
TURBO_RATE = 2.0
"""Turbo pictures a second of part ``video``."""
ITEMS_TARGET, FIFO_TARGET = 1.2, 0.25
COLUMNS = ("server", "CPU s/picture", "pictures/s", "p50 s", "p95 s", "4-step p50 s", "4-step p95 s", "lanes", "faults")
ENGINES = ROOT / ".cache" / "benchmarks" / "engines"


class Backend(StrEnum):
    """Ours, by what runs the networks."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


class Part(StrEnum):
    """What to measure."""

    CPU = "cpu"
    LATENCY = "latency"
    VIDEO = "video"
    ALL = "all"


def _closed(requests: Sequence[Request], clients: int) -> Work:
    return lambda client: closed_loop(client, requests, clients)


def _poisson(requests: Sequence[Request], rate: float, seed: int) -> Work:
    return partial(open_loop, requests=requests, times=arrival_times(len(requests), rate, seed))


def cpu_part(setup: Setup, backends: Sequence[str], count: int, rounds: int) -> dict[str, Any]:
    """Closed loop: all servers in turns, each round beginning with another, so that drift meets all."""
    spec, names = ModelSpec.read(setup.model), ["lock", "litserve", *backends]
    segments: list[Segment] = []
    pairs: list[dict[str, Any]] = []
    for number in range(rounds):
        requests, found = make_requests(count, number, spec), dict[str, Segment]()
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            with running(name, setup) as put:
                found[name] = put(f"{count} requests of {CLIENTS} clients", _closed(requests, CLIENTS))
        segments += found.values()
        pairs += [
            {
                "round": number,
                "ours": backend,
                "peer": peer,
                "cpu_ratio": finite(ratio("cpu_s_per_picture", found[backend], found[peer])),
                "pictures": difference(found[backend].run, found[peer].run),
            }
            for backend in backends
            for peer in ("lock", "litserve")
        ]
    targets = [
        Target(f"CPU s a picture, {ours} / {peer}, median of {rounds}", _median(pairs, ours, peer), limit, False)
        for (ours, peer), limit in CPU_TARGETS.items()
        if ours in backends
    ]
    _print("Closed loop of 16 clients", segments, targets)
    return {
        "parameters": {"clients": CLIENTS, "requests": count, "rounds": rounds, "scheduler": spec.solver},
        "segments": [segment.to_json() for segment in segments],
        "pairs": pairs,
        "targets": [target.to_json() for target in targets],
    }


def _median(pairs: Sequence[Mapping[str, Any]], ours: str, peer: str) -> float:
    ratios = [pair["cpu_ratio"] for pair in pairs if (pair["ours"], pair["peer"]) == (ours, peer)]
    return math.nan if None in ratios else statistics.median(ratios)


def latency_part(setup: Setup, count: int, half_count: int) -> dict[str, Any]:
    """Poisson arrivals at two shares of the lock server's capacity, the same ones for every server."""
    spec = ModelSpec.read(setup.model)
    busy_requests, half_requests = make_requests(count, 2000, spec), make_requests(half_count, 4000, spec)
    busy, half = dict[str, Segment](), dict[str, Segment]()
    with running("lock", setup) as put:
        alone = put("its capacity", _closed(make_requests(CAPACITY_REQUESTS, 1000, spec), 1))
        if alone.run.faults:
            raise RuntimeError(f"the lock server's capacity could not be measured: {alone.run.faults[0]}")
        capacity = alone.figures()["pictures_per_s"]
        at_busy = _poisson(busy_requests, BUSY * capacity, 3000)
        busy["lock"] = put(f"{count} arrivals, {BUSY * capacity:.3g}/s", at_busy)
    for name in ("closed", "onnxruntime"):
        with running(name, setup) as put:
            busy[name] = put(f"{count} arrivals, {BUSY * capacity:.3g}/s", at_busy)
            at_half = _poisson(half_requests, HALF * capacity, 5000)
            half[name] = put(f"{half_count} arrivals, {HALF * capacity:.3g}/s", at_half)
    targets = [
        Target(
            f"p95 of 4-step requests at {BUSY:.0%}, ours / {peer}",
            ratio("short_p95_s", busy["onnxruntime"], busy[peer]),
            limit,
            False,
        )
        for peer, limit in SHORT_TARGETS.items()
    ]
    of_all = ratio("p95_s", half["onnxruntime"], half["closed"])
    targets.append(Target(f"p95 of all requests at {HALF:.0%}, ours / closed", of_all, ALL_TARGET, False))
    _print(f"Poisson arrivals at {BUSY:.0%}", list(busy.values()), targets[:2])
    _print(f"Poisson arrivals at {HALF:.0%}", list(half.values()), targets[2:])
    return {
        "parameters": {"requests": count, "half_requests": half_count, "scheduler": spec.solver},
        "lock_capacity": {"pictures_per_s": finite(capacity), "requests": CAPACITY_REQUESTS},
        "busy": [segment.to_json() for segment in busy.values()],
        "half": [segment.to_json() for segment in half.values()],
        "targets": [target.to_json() for target in targets],
    }


def video_part(setup: Setup, turbo: Path, video: Path, count: int) -> dict[str, Any]:
    """Turbo pictures alone, beside a clip that is always in the making, and beside it in the order of arrival."""
    spec, clips = ModelSpec.read(turbo), ModelSpec.read(video)
    work = _poisson(alike_requests(count, 6000, spec), TURBO_RATE, 7000)
    clip_s: dict[str, list[float]] = {}

    async def first_clip(client: httpx.AsyncClient) -> Run:
        await make_clip(client, clips, 1000)  # not counted: it loads the model
        return await closed_loop(client, alike_requests(4, 8000, spec), 1)

    async def beside_a_clip(client: httpx.AsyncClient, name: str) -> Run:
        async with always_a_clip(client, clips) as seconds:
            run = await work(client)
            clip_s[name] = list(seconds)
        return run

    with running("onnxruntime", setup) as put:
        put("first clip", first_clip)
        idle = put(f"{count} turbo pictures alone", work)
        beside = put(f"{count} turbo pictures beside a clip", partial(beside_a_clip, name="onnxruntime"))
    with running("closed", setup) as put:
        put("first clip", first_clip)
        fifo = put(f"{count} turbo pictures beside a clip", partial(beside_a_clip, name="closed"))
    longest_s = Bench(video, setup.engines.parent, setup.threads).longest_item_s()
    p95 = {
        "alone": percentile(idle.run.latencies, 95),
        "beside a clip": percentile(beside.run.latencies, 95),
        "in order of arrival": percentile(fifo.run.latencies, 95),
    }
    failed = any(segment.run.faults for segment in (idle, beside, fifo))
    over_s = math.nan if failed else (p95["beside a clip"] - p95["alone"]) / longest_s
    targets = [
        Target("turbo p95 beside a clip, above alone, in longest items", over_s, ITEMS_TARGET, False),
        Target("turbo p95 beside a clip / in order of arrival", ratio("p95_s", beside, fifo), FIFO_TARGET, False),
    ]
    print_rows("Turbo pictures", ("beside", "p95 s"), list(p95.items()))
    console.print(f"longest item of a clip {longest_s:.3f} s; clips took {clip_s}")
    print_targets(targets)
    return {
        "parameters": {"requests": count, "rate": TURBO_RATE, "turbo": spec.name, "video": clips.name},
        "turbo_p95_s": {name: finite(value) for name, value in p95.items()},
        "longest_item_s": finite(longest_s),
        "clip_s": {name: [finite(value) for value in values] for name, values in clip_s.items()},
        "segments": [segment.to_json() for segment in (idle, beside, fifo)],
        "targets": [target.to_json() for target in targets],
    }


def _print(title: str, segments: Sequence[Segment], targets: Sequence[Target]) -> None:
    rows = [(segment.server, *list(segment.figures().values())[: len(COLUMNS) - 1]) for segment in segments]
    print_rows(title, COLUMNS, rows)
    print_targets(targets)


def main(
    part: Annotated[Part, typer.Option(help="What to measure.")] = Part.ALL,
    model: Annotated[Path, typer.Option(help="A diffusers SDXL folder.", exists=True)] = ZOO / "emoji-xl",
    requests: Annotated[int, typer.Option(help="Arrivals at 80 %; half as many at 50 %.", min=2)] = 120,
    closed: Annotated[int, typer.Option(help="Requests of each closed loop of part cpu.", min=1)] = 48,
    rounds: Annotated[int, typer.Option(help="Rounds of part cpu.", min=1)] = 2,
    turbo: Annotated[int, typer.Option(help="Turbo pictures of each segment of part video.", min=1)] = 80,
    backend: Annotated[list[Backend] | None, typer.Option(help="Ours in part cpu; repeat for both.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of every server; Darkroom's default if not given.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file; its other parts stay.")] = RESULTS / "serving.json",
) -> None:
    """Measure Darkroom and its peers, in turns, on the same weights. Results for the shipped place go into the table of
    docs/measurements.md, too."""
    setup = Setup(model, threads or Settings().threads, ENGINES)
    backends = [str(b) for b in backend or [Backend.ONNXRUNTIME]]
    parts = {
        Part.CPU: partial(cpu_part, setup, backends, closed, rounds),
        Part.LATENCY: partial(latency_part, setup, requests, max(1, requests // 2)),
        Part.VIDEO: partial(video_part, setup, ZOO / "emoji-xl-turbo", ZOO / "emoji-svd", turbo),
    }
    for name, measure in parts.items():
        if part in (name, Part.ALL):
            about = {**facts(model), "threads": setup.threads}
            save(out, name, {**about, **measure()})
    if out == RESULTS / "serving.json":
        document("serving", table(json.loads(out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
