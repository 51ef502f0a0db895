"""One server under one load: what it took, and how two of them compare."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.load import Run, closed_loop, open_client, warm_up_requests
from benchmarks.report import console, finite, load, percentile
from benchmarks.servers import Server, Setup, cpu_between, start
from models.spec.model import ModelSpec

WARM_UP_CLIENTS = 8

Work = Callable[[httpx.AsyncClient], Awaitable[Run]]
"""What clients ask of a server."""


@dataclass(frozen=True)
class Segment:
    """One server under one load."""

    server: str
    run: Run
    cpu_s: float
    """Processor seconds of all its processes, from the first request to the last answer."""
    lanes: float
    """Mean lanes of its denoising batches, without padding; not a number for the peers, which do not tell."""
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


@contextmanager
def running(name: str, setup: Setup) -> Iterator[Callable[[str, Work], Segment]]:
    """A fresh server, warmed up, until the end of the block. What is given puts one load on it; the text says which."""
    spec = ModelSpec.read(setup.model)
    with start(name, setup) as server:
        _asked(server, lambda client: closed_loop(client, warm_up_requests(spec), WARM_UP_CLIENTS))
        yield lambda about, work: _measured(name, server, about, work)


def _measured(name: str, server: Server, about: str, work: Work) -> Segment:
    console.print(f"{name}: {about} ...")
    counts_before, load_before, cpu_before = server.counts(), load(), server.cpu()
    run = _asked(server, work)
    cpu_s = cpu_between(cpu_before, server.cpu())
    lanes, padded = _lanes(counts_before, server.counts())
    for fault in run.faults[:3]:
        console.print(f"  fault: {fault}", style="red", markup=False)
    return Segment(name, run, cpu_s, lanes, padded, server.ready_s, load_before)


def _asked(server: Server, work: Work) -> Run:
    async def ask() -> Run:
        async with open_client(server.url) as client:
            return await work(client)

    return asyncio.run(ask())


def _lanes(before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]) -> tuple[float, float]:
    """Mean lanes of the denoising batches between two readings, and the share of padding."""

    def grown(name: str) -> float:
        return after.get((name, "denoise"), 0.0) - before.get((name, "denoise"), 0.0)

    batches, lanes = grown("darkroom_batch_lanes_count"), grown("darkroom_batch_lanes_sum")
    padding = grown("darkroom_padded_lanes_total")
    return (lanes / batches, padding / (lanes + padding)) if batches else (math.nan, math.nan)


def ratio(figure: str, ours: Segment, theirs: Segment) -> float:
    """Ours over theirs; not a number when either left a request without a picture."""
    failed = bool(ours.run.faults or theirs.run.faults)
    return math.nan if failed else ours.figures()[figure] / theirs.figures()[figure]


def difference(ours: Run, theirs: Run) -> dict[str, Any]:
    """How far the pictures of two runs of the same requests are apart, in levels of 255: without equal pictures there
    is no equal work."""
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
