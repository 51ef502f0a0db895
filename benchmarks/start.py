"""How long a start takes: ``python -m benchmarks.start``. See README.md beside this file."""

from __future__ import annotations

import asyncio
import statistics
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


def measure(setup: Setup) -> tuple[float, float]:
    """Seconds of one start until it is ready, and from then until the first picture is here.

    Raises:
        RuntimeError: there was no picture.
    """
    spec = ModelSpec.read(setup.model)
    request = Request("red apple, 3d", STEPS, spec.guidance, 0, spec.solver)
    with start("onnxruntime", setup) as server:
        answer = asyncio.run(_first_picture(server.url, request))
        if answer.fault:
            raise RuntimeError(f"no picture: {answer.fault}")
        return server.ready_s, answer.seconds


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
    console.print("first start, not counted: it compiles the engines if they are missing ...")
    measure(setup)
    starts = []
    for i in range(runs):
        load_before = load()
        ready_s, picture_s = measure(setup)
        starts.append({"ready_s": finite(ready_s), "picture_s": finite(picture_s), "load_before": load_before})
        console.print(f"{i + 1}/{runs}: ready after {ready_s:.2f} s, picture {picture_s:.2f} s later")
    targets = [
        Target("start to ready, s, median", _median(starts, "ready_s"), READY_TARGET_S, at_least=False),
        Target(f"ready to {STEPS}-step picture, s, median", _median(starts, "picture_s"), PICTURE_TARGET_S, False),
    ]
    print_rows("Starts", ("start", "ready s", "picture s", "load"), [(i, *s.values()) for i, s in enumerate(starts)])
    print_targets(targets)
    save(out, "start", {**about, "starts": starts, "targets": [target.to_json() for target in targets]})


def _median(starts: list[dict[str, float | None]], name: str) -> float:
    return statistics.median(value for start_ in starts if (value := start_[name]) is not None)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
