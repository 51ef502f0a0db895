"""Darkroom against a lock around diffusers' pipeline, on the same weights: ``python -m benchmarks.serving``.

Part A is a closed loop and measures processor seconds per picture; part B is Poisson arrivals and measures latency.
See README.md beside this file.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.load import (
    Request,
    Run,
    arrival_times,
    closed_loop,
    make_requests,
    open_client,
    open_loop,
    warm_up_requests,
)
from benchmarks.report import (
    RESULTS,
    ROOT,
    Target,
    console,
    facts,
    finite,
    load,
    percentile,
    print_rows,
    print_targets,
    save,
)
from benchmarks.servers import Setup, cpu_between, start
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings

CLIENTS = 16
UTILISATION = 0.8
"""Arrivals of part B, as a share of what the lock server can do."""
CAPACITY_REQUESTS = 32
CPU_TARGETS = {"onnxruntime": 2.0, "torch": 1.5}
SHORT_P95_TARGET = 0.25
COLUMNS = ("server", "CPU s/picture", "pictures/s", "p50 s", "p95 s", "4-step p50 s", "4-step p95 s", "lanes", "faults")


class Backend(StrEnum):
    """Ours, by what runs the networks."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


class Part(StrEnum):
    """What to measure."""

    A = "a"
    B = "b"
    BOTH = "both"


@dataclass(frozen=True)
class Segment:
    """One fresh server under one load."""

    server: str
    run: Run
    cpu_s: float
    """Processor seconds of all its processes, from the first request to the last answer."""
    lanes: float
    """Mean lanes of its denoising batches, without padding; not a number for the lock server, which does not tell."""
    padded: float
    """Lanes that were computed only to fill a batch, as a share of all."""
    ready_s: float
    load_before: float

    @property
    def cpu_per_picture(self) -> float:
        """Processor seconds of one picture."""
        return self.cpu_s / len(self.run.latencies) if self.run.latencies else math.nan

    def figures(self) -> dict[str, float]:
        """Everything that is counted or timed."""
        run = self.run
        return {
            "cpu_s_per_picture": self.cpu_per_picture,
            "pictures_per_s": len(run.latencies) / run.seconds,
            "p50_s": percentile(run.latencies, 50),
            "p95_s": percentile(run.latencies, 95),
            "short_p50_s": percentile(run.short_latencies, 50),
            "short_p95_s": percentile(run.short_latencies, 95),
            "mean_lanes": self.lanes,
            "faults": float(len(run.faults)),
            "padded_share": self.padded,
            "ready_s": self.ready_s,
            "load_before": self.load_before,
        }

    def to_json(self) -> dict[str, Any]:
        """The figures, and what went wrong."""
        figures = {name: finite(value) for name, value in self.figures().items()}
        return {"server": self.server, **figures, "first_faults": self.run.faults[:3]}


def measure(
    name: str, setup: Setup, requests: Sequence[Request], times: Sequence[float] | None, clients: int
) -> Segment:
    """Start a server, warm it up, load it: at ``times``, or for None in a closed loop of ``clients``."""
    console.print(f"{name}: {len(requests)} requests ...")
    with start(name, setup) as server:
        asyncio.run(_load(server.url, warm_up_requests(requests[0].scheduler), None, clients))
        counts_before = server.counts()
        load_before, cpu_before = load(), server.cpu()
        run = asyncio.run(_load(server.url, requests, times, clients))
        cpu_s = cpu_between(cpu_before, server.cpu())
        lanes, padded = _lanes(counts_before, server.counts())
        segment = Segment(name, run, cpu_s, lanes, padded, server.ready_s, load_before)
    for fault in run.faults[:3]:
        console.print(f"  fault: {fault}", style="red", markup=False)
    return segment


async def _load(url: str, requests: Sequence[Request], times: Sequence[float] | None, clients: int) -> Run:
    async with open_client(url) as client:
        if times is None:
            return await closed_loop(client, requests, clients)
        return await open_loop(client, requests, times)


def _lanes(before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]) -> tuple[float, float]:
    """Mean lanes of the denoising batches between two readings, and the share of padding."""

    def grown(name: str) -> float:
        return after.get((name, "denoise"), 0.0) - before.get((name, "denoise"), 0.0)

    batches, lanes = grown("darkroom_batch_lanes_count"), grown("darkroom_batch_lanes_sum")
    padding = grown("darkroom_padded_lanes_total")
    return (lanes / batches, padding / (lanes + padding)) if batches else (math.nan, math.nan)


def part_a(setup: Setup, backends: Sequence[str], count: int, rounds: int) -> dict[str, Any]:
    """Closed loop: each back end beside the lock server, in turns, so that a drift of the machine meets both."""
    scheduler = ModelSpec.read(setup.model).solver
    pairs: list[dict[str, Any]] = []
    segments: list[Segment] = []
    for round_ in range(rounds):
        requests = make_requests(count, round_, scheduler)
        for backend in backends:
            names = [backend, "lock"] if round_ % 2 == 0 else ["lock", backend]
            both = {name: measure(name, setup, requests, None, CLIENTS) for name in names}
            segments += both.values()
            pairs.append({"round": round_, "backend": backend, **_compare(both[backend], both["lock"])})
    targets = [
        Target(
            f"CPU of lock / {backend}, median of {rounds} pairs", _median(pairs, backend), CPU_TARGETS[backend], True
        )
        for backend in backends
    ]
    _print("Part A: closed loop of 16 clients", segments, targets)
    for pair in pairs:
        console.print(f"round {pair['round']} {pair['backend']}: {pair['cpu_ratio']}x, pictures {pair['pictures']}")
    return {
        "parameters": {"clients": CLIENTS, "requests": count, "rounds": rounds, "scheduler": scheduler},
        "segments": [segment.to_json() for segment in segments],
        "pairs": pairs,
        "targets": [target.to_json() for target in targets],
    }


def _compare(ours: Segment, lock: Segment) -> dict[str, Any]:
    """A pair's ratio, and how far apart its pictures are: without equal pictures there is no equal work."""
    failed = bool(ours.run.faults or lock.run.faults)
    ratio = math.nan if failed else lock.cpu_per_picture / ours.cpu_per_picture
    return {"cpu_ratio": finite(ratio), "pictures": difference(ours.run, lock.run)}


def difference(ours: Run, theirs: Run) -> dict[str, Any]:
    """How far the pictures of two runs of the same requests are apart, in levels of 255."""
    both = [
        (a.picture, b.picture) for a, b in zip(ours.answers, theirs.answers, strict=True) if a.picture and b.picture
    ]
    apart = [np.abs(_pixels(a) - _pixels(b)) for a, b in both]
    if not apart:
        return {"compared": 0}
    return {
        "compared": len(apart),
        "mean": finite(float(np.mean([d.mean() for d in apart]))),
        "largest": int(max(d.max() for d in apart)),
        "beyond_one_level": sum(bool(d.max() > 1) for d in apart),
    }


def _pixels(picture: str) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")).astype(np.int16)


def _median(pairs: Sequence[Mapping[str, Any]], backend: str) -> float:
    ratios = [pair["cpu_ratio"] for pair in pairs if pair["backend"] == backend]
    return math.nan if None in ratios else statistics.median(ratios)


def part_b(setup: Setup, backends: Sequence[str], count: int) -> dict[str, Any]:
    """Poisson arrivals at a share of the lock server's capacity, the same ones for every server."""
    scheduler = ModelSpec.read(setup.model).solver
    alone = measure("lock", setup, make_requests(CAPACITY_REQUESTS, 1000, scheduler), None, 1)
    if alone.run.faults:
        raise RuntimeError(f"the lock server's capacity could not be measured: {alone.run.faults[0]}")
    capacity = alone.figures()["pictures_per_s"]
    requests, times = make_requests(count, 2000, scheduler), arrival_times(count, UTILISATION * capacity, 3000)
    console.print(f"lock server: {capacity:.3g} pictures/s, so {count} arrivals take {times[-1]:.0f} s a server")
    segments = {name: measure(name, setup, requests, times, CLIENTS) for name in ("lock", *backends)}
    targets = [_short_target(segments[backend], segments["lock"]) for backend in backends]
    _print(f"Part B: Poisson arrivals, {UTILISATION * capacity:.3g}/s", list(segments.values()), targets)
    return {
        "parameters": {"requests": count, "utilisation": UTILISATION, "scheduler": scheduler},
        "lock_capacity": {"pictures_per_s": finite(capacity), "requests": CAPACITY_REQUESTS},
        "arrivals_per_s": finite(UTILISATION * capacity),
        "segments": [segment.to_json() for segment in segments.values()],
        "p95_ratio": {b: finite(_ratio("p95_s", segments[b], segments["lock"])) for b in backends},
        "targets": [target.to_json() for target in targets],
    }


def _short_target(ours: Segment, lock: Segment) -> Target:
    name = f"p95 of 4-step requests, {ours.server} / lock"
    return Target(name, _ratio("short_p95_s", ours, lock), SHORT_P95_TARGET, at_least=False)


def _ratio(figure: str, ours: Segment, lock: Segment) -> float:
    """Ours over theirs; not a number when either left a request without a picture."""
    failed = bool(ours.run.faults or lock.run.faults)
    return math.nan if failed else ours.figures()[figure] / lock.figures()[figure]


def _print(title: str, segments: Sequence[Segment], targets: Sequence[Target]) -> None:
    rows = [(segment.server, *list(segment.figures().values())[: len(COLUMNS) - 1]) for segment in segments]
    print_rows(title, COLUMNS, rows)
    print_targets(targets)


def main(
    model: Annotated[Path, typer.Option(help="A diffusers SDXL folder.", exists=True)] = ZOO / "emoji-xl",
    requests: Annotated[int, typer.Option(help="Poisson arrivals of part B.", min=1)] = 500,
    closed: Annotated[int, typer.Option(help="Requests of each closed loop of part A.", min=1)] = 64,
    rounds: Annotated[int, typer.Option(help="Pairs of each back end in part A.", min=1)] = 3,
    part: Annotated[Part, typer.Option(help="What to measure.")] = Part.BOTH,
    backend: Annotated[list[Backend] | None, typer.Option(help="Ours; repeat for several. All if not given.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of every server; Darkroom's default if not given.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file; its other parts stay.")] = RESULTS / "serving.json",
) -> None:
    """Measure Darkroom and a lock around diffusers' pipeline, in turns, on the same weights."""
    setup = Setup(model, threads or Settings().threads, ROOT / ".cache" / "benchmarks" / "engines")
    backends = [str(b) for b in backend or Backend]
    if part in (Part.A, Part.BOTH):
        about = {**facts(model), "threads": setup.threads}
        save(out, "cpu", {**about, **part_a(setup, backends, closed, rounds)})
    if part in (Part.B, Part.BOTH):
        about = {**facts(model), "threads": setup.threads}
        save(out, "latency", {**about, **part_b(setup, backends, requests)})


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
