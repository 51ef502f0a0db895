"""What checkpoints and previews cost on the shipped models: ``python -m benchmarks.overheads``.

Processor time, of pieces that run alone. A checkpoint is taken half way, as the worker takes it; what it costs in
service follows from its price and the worker's own pace. See README.md beside this file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from benchmarks.pieces import Bench
from benchmarks.report import RESULTS, ROOT, Target, facts, finite, print_rows, print_targets, save
from service.jobs.artifacts import ArtifactStore
from service.jobs.sqlite import SQLiteStore
from service.settings import ZOO
from service.worker.batch import Stage
from service.worker.checkpoints import EVERY_S, MOST_SHARE, pack
from service.worker.media import encode_preview
from service.worker.piece import Piece
from service.worker.previews import Previews
from service.worker.runner import Preview

T = TypeVar("T")

MODELS = ("emoji-xl", "emoji-svd")
PREVIEWS = 3
CHECKPOINT_TARGET, PREVIEWS_TARGET = MOST_SHARE, 0.05


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds of this process, and what came of it."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def checkpoint_cost(bench: Bench, folder: Path, rounds: int) -> dict[str, float]:
    """Processor milliseconds and bytes of one checkpoint, half way through a piece; and of the whole piece, which has
    none."""
    whole_s, _ = timed(lambda: list(bench.run(bench.piece(1))))
    piece, artifacts = bench.piece(2), ArtifactStore(folder / "artifacts")
    steps = (shown for shown in bench.run(piece) if shown[0] is Stage.DENOISE)
    for _ in range(piece.steps // 2):
        next(steps)
    with closing(SQLiteStore(folder / "jobs.sqlite3")) as store:
        store.submit(piece.request)
        (lease,) = store.claim("bench", 1, 3600.0)

        def save_it() -> int:
            content = pack(lease.job.id, piece.numerics.id, [piece.snapshot()])
            store.checkpoint(lease.id, artifacts.put(content))
            return len(content)

        found = []
        for _ in range(rounds):
            found.append(timed(save_it))
            next(steps)
    cost_s, size = statistics.median(seconds for seconds, _ in found), found[-1][1]
    return {
        "piece_s": whole_s,
        "checkpoint_ms": cost_s * 1e3,
        "bytes": size,
        "share": cost_s / max(EVERY_S, cost_s / MOST_SHARE),
    }


def preview_cost(bench: Bench, folder: Path, rounds: int) -> dict[str, float]:
    """Processor milliseconds of three previews of a picture: on the device's thread, and beside it for colours,
    encoding and storing."""
    artifacts, previews = ArtifactStore(folder / "artifacts"), Previews()
    shown = _shown(bench.piece(0, PREVIEWS), bench)  # those of a model without a small decoder need one decoded
    for one in shown:
        if one.pixels is not None:
            previews.learn(one.picture.numerics.id, one.latent, one.pixels)

    def show(these: Sequence[Preview]) -> None:
        for one in these:
            pixels = previews.pixels(one.picture.numerics.id, one.latent) if one.pixels is None else one.pixels
            artifacts.put(encode_preview(pixels, one.picture.request))

    plain, watched, beside = list[float](), list[float](), list[float]()
    for seed in range(1, rounds + 1):
        plain.append(timed(partial(_shown, bench.piece(seed), bench))[0])
        seconds, shown = timed(partial(_shown, bench.piece(seed, PREVIEWS), bench))
        watched.append(seconds)
        beside.append(timed(partial(show, shown))[0])
    picture_s = statistics.median(plain)
    device_s = statistics.median(b - a for a, b in zip(plain, watched, strict=True))
    return {
        "picture_s": picture_s,
        "device_ms": device_s * 1e3,
        "beside_ms": statistics.median(beside) * 1e3,
        "share": device_s / picture_s,
    }


def _shown(piece: Piece, bench: Bench) -> list[Preview]:
    return [preview for _, _, shown in bench.run(piece) for preview in shown]


def main(
    rounds: Annotated[int, typer.Option(help="Checkpoints of each model, and pictures with previews.", min=3)] = 9,
    threads: Annotated[int, typer.Option(help="Of the networks.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "overheads.json",
) -> None:
    """Take the processor time of checkpoints and previews."""
    targets, content, data = list[Target](), dict[str, Any](), ROOT / ".cache" / "benchmarks"
    for name in MODELS:
        bench = Bench(ZOO / name, data, threads)
        list(bench.run(bench.piece(0)))  # not counted
        with tempfile.TemporaryDirectory() as folder:
            found = {"checkpoint": checkpoint_cost(bench, Path(folder), min(rounds, bench.spec.steps // 2 - 1))}
            targets.append(
                Target(f"{name}: checkpoints' share", found["checkpoint"]["share"], CHECKPOINT_TARGET, at_least=False)
            )
            if bench.spec.system.task == "text-to-image":
                found["previews"] = preview_cost(bench, Path(folder), rounds)
                share = found["previews"]["share"]
                targets.append(Target(f"{name}: {PREVIEWS} previews' share", share, PREVIEWS_TARGET, at_least=False))
        for what, figures in found.items():
            print_rows(f"{name}: {what}", tuple(figures), [tuple(figures.values())])
        content[name] = {what: {k: finite(v) for k, v in figures.items()} for what, figures in found.items()}
    print_targets(targets)
    save(out, "overheads", {**facts(), "models": content, "targets": [target.to_json() for target in targets]})


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
