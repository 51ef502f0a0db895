"""What a server keeps of the jobs that it has done: ``python -m benchmarks.growth``. See README.md beside this file.

Memory and handles of every process of ``darkroom serve`` after some hundred jobs, when all caches are warm, and after
many more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import psutil  # type: ignore[import-untyped]
import typer

from benchmarks.load import Run, alike_requests, closed_loop, open_client
from benchmarks.report import RESULTS, ROOT, Target, console, facts, print_rows, print_targets, save
from benchmarks.servers import Server, Setup, start
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings

FIRST, LAST = 500, 2000
CLIENTS = 8
SETTLE_S = 3.0
"""For connections to be closed and freed memory to be given back."""
GROWTH_TARGET_MIB = 16.0


@dataclass(frozen=True)
class Holding:
    """What one process holds."""

    role: str
    rss_mib: float
    handles: int
    threads: int


def measure(setup: Setup, first: int = FIRST, last: int = LAST) -> tuple[list[Holding], list[Holding]]:
    """What server and worker hold after ``first`` and after ``last`` one-step pictures.

    Raises:
        RuntimeError: a picture was not made.
    """
    with start("onnxruntime", setup) as server:
        _make(server, setup, first, 0)
        before = holdings(server)
        _make(server, setup, last - first, 1)
        return before, holdings(server)


def holdings(server: Server) -> list[Holding]:
    """What the server's processes hold when nothing is asked of them: first the server itself."""
    time.sleep(SETTLE_S)
    processes = [server.process, *server.process.children(recursive=True)]
    return [_holding(f"{'worker' if i else 'server'} {process.pid}", process) for i, process in enumerate(processes)]


def _holding(role: str, process: psutil.Process) -> Holding:
    with process.oneshot():
        rss_mib = round(process.memory_info().rss / 2**20, 2)
        return Holding(role, rss_mib, process.num_fds(), process.num_threads())


def _make(server: Server, setup: Setup, count: int, seed: int) -> None:
    requests = alike_requests(count, seed, ModelSpec.read(setup.model))
    short = [replace(request, num_inference_steps=1, guidance_scale=1.0) for request in requests]

    async def ask() -> Run:
        async with open_client(server.url) as client:
            return await closed_loop(client, short, CLIENTS)

    faults = asyncio.run(ask()).faults
    if faults:
        raise RuntimeError(f"{len(faults)} of {count} pictures were not made: {faults[0]}")


def targets_of(before: list[Holding], after: list[Holding]) -> list[Target]:
    """What is promised of the way from one to the other."""
    growth = sum(held.rss_mib for held in after) - sum(held.rss_mib for held in before)
    handles = sum(held.handles for held in after) - sum(held.handles for held in before)
    return [
        Target("growth of memory, MiB", growth, GROWTH_TARGET_MIB, at_least=False),
        Target("more handles", handles, 0.0, at_least=False),
    ]


def main(
    first: Annotated[int, typer.Option(help="Jobs before the first look.", min=1)] = FIRST,
    last: Annotated[int, typer.Option(help="Jobs before the second.", min=2)] = LAST,
    model: Annotated[Path, typer.Option(help="A diffusers SDXL folder.", exists=True)] = ZOO / "emoji-xl-turbo",
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "growth.json",
) -> None:
    """Make many pictures and look at what the processes hold."""
    about = facts(model)
    setup = Setup(model, Settings().threads, ROOT / ".cache" / "benchmarks" / "engines")
    console.print(f"{last} one-step pictures ...")
    before, after = measure(setup, first, last)
    targets, rows = targets_of(before, after), list[tuple[Any, ...]]()
    looks: Mapping[int, list[Holding]] = {first: before, last: after}
    for jobs, look in looks.items():
        rows += [(jobs, *asdict(held).values()) for held in look]
    print_rows("Held by the processes", ("jobs", "process", "RSS MiB", "handles", "threads"), rows)
    print_targets(targets)
    content = {str(jobs): [asdict(held) for held in look] for jobs, look in looks.items()}
    save(out, "growth", {**about, "jobs": content, "targets": [target.to_json() for target in targets]})


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
