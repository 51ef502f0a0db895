"""How long a start takes: ``python -m benchmarks.start``. See README.md beside this file."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.load import Answer, Request, closed_loop, open_client
from benchmarks.report import RESULTS, ROOT, Target, console, facts, finite, load, print_rows, print_targets, save
from benchmarks.servers import Setup, start
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings

STEPS = 20
READY_TARGET_S = 10.0
PICTURE_TARGET_S = 3.0
WARM_CPU_TARGET_S = 5.0
COLD_CPU_TARGET_S = 60.0


@dataclass(frozen=True)
class Start:
    """One start of a server."""

    ready_s: float
    """Until ``/health/ready`` answers 200."""
    picture_s: float
    """From then until the first picture is here."""
    cpu_s: float
    """Of all processes of the server, until the picture."""


def measure(setup: Setup) -> Start:
    """Start a server and ask it for a picture.

    Raises:
        RuntimeError: there was no picture.
    """
    spec = ModelSpec.read(setup.model)
    request = Request(spec.name, "red apple, 3d", STEPS, spec.guidance, 0, spec.solver)
    with start("onnxruntime", setup) as server:
        answer = asyncio.run(_first_picture(server.url, request))
        if answer.fault:
            raise RuntimeError(f"no picture: {answer.fault}")
        return Start(server.ready_s, answer.seconds, sum(server.cpu().values()))


async def _first_picture(url: str, request: Request) -> Answer:
    async with open_client(url) as client:
        return (await closed_loop(client, [request], 1)).answers[0]


def main(
    runs: Annotated[int, typer.Option(help="Starts that count; one more goes before them.", min=1)] = 5,
    model: Annotated[Path, typer.Option(help="A diffusers SDXL folder.", exists=True)] = ZOO / "emoji-xl",
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "start.json",
) -> None:
    """Start Darkroom again and again, with compiled engines at hand, and take the time."""
    setup = Setup(model, Settings().threads, ROOT / ".cache" / "benchmarks" / "engines")
    about = {**facts(model), "threads": setup.threads}
    with tempfile.TemporaryDirectory() as folder:
        cold = measure(replace(setup, engines=Path(folder) / "engines"))
    console.print(f"without engines: ready after {cold.ready_s:.1f} s, {cold.cpu_s:.1f} s of CPU until the picture")
    measure(setup)  # not counted: it compiles the engines if they are missing
    starts, loads = [], []
    for i in range(runs):
        loads.append(load())
        starts.append(one := measure(setup))
        console.print(f"{i + 1}/{runs}: ready after {one.ready_s:.2f} s, picture {one.picture_s:.2f} s later")
    targets = [
        _target("start to ready, s, median", [one.ready_s for one in starts], READY_TARGET_S),
        _target(f"ready to {STEPS}-step picture, s, median", [one.picture_s for one in starts], PICTURE_TARGET_S),
        _target("start to picture, s of CPU, median", [one.cpu_s for one in starts], WARM_CPU_TARGET_S),
        _target("the same without engines", [cold.cpu_s], COLD_CPU_TARGET_S),
    ]
    shown = [(i, *asdict(one).values(), load_) for i, (one, load_) in enumerate(zip(starts, loads, strict=True))]
    print_rows("Starts", ("start", "ready s", "picture s", "CPU s", "load"), shown)
    print_targets(targets)
    rows = [{**_finite(one), "load_before": load_} for one, load_ in zip(starts, loads, strict=True)]
    results = {"cold": _finite(cold), "starts": rows, "targets": [target.to_json() for target in targets]}
    save(out, "start", {**about, **results})


def _target(name: str, seconds: list[float], limit: float) -> Target:
    return Target(name, statistics.median(seconds), limit, at_least=False)


def _finite(one: Start) -> dict[str, float | None]:
    return {name: finite(value) for name, value in asdict(one).items()}


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
