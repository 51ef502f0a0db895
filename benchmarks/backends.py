"""ONNX Runtime, OpenVINO, our networks on torch, and diffusers', on the shipped weights.

``python -m benchmarks.backends``. All run in turns in one process on one thread, OpenVINO where it is installed.
What counts is the median ratio of their processor times. See README.md beside this file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import Tensor

from benchmarks.report import RESULTS, ROOT, Target, console, facts, print_rows, print_targets, save
from benchmarks.timing import cpu_seconds
from engines.cache import EngineCache
from engines.call import examples
from engines.networks import bucket, networks_of
from engines.openvino_session import OpenVinoSession
from engines.prepare import build_graph
from engines.session import OnnxSession
from engines.verify import largest_error
from models.spec.model import ModelSpec
from models.spec.unet import read_unet_spec
from service.settings import ZOO

Backend = Literal["onnxruntime", "openvino", "torch", "diffusers"]
GRAPHS: tuple[Backend, ...] = ("onnxruntime", "openvino")
"""Those that run exported graphs."""
BATCHES = (1, 4, 16)
OVER_DIFFUSERS = 1.8
"""At batch 1: diffusers' processor time in units of ONNX Runtime's."""
OVER_OURS = 1.0
"""At every batch size: our own torch networks' in units of ONNX Runtime's."""
SLICE_S = 0.05
"""Of one turn of one back end."""


@dataclass(frozen=True)
class Outcome:
    """Medians of one network at one batch size."""

    network: str
    batch: int
    milliseconds: Mapping[Backend, float]
    """Of the processor."""
    ratio: Mapping[Backend, float]
    """The others' time in units of ONNX Runtime's."""
    largest_error: float
    """Of exported graphs against diffusers, in units of the largest output."""


def backends(model: Path) -> Callable[[int], Mapping[Backend, Callable[[], Tensor]]]:
    """A shipped model's denoiser on every back end: from a batch size to one call of each, on the same inputs."""
    spec, network = ModelSpec.read(model), networks_of(model)["unet"]
    graph = build_graph(network, EngineCache(ROOT / ".cache" / "benchmarks" / "engines"))
    sessions: dict[Backend, Callable[..., Any]] = {"onnxruntime": OnnxSession(graph, threads=1)}
    if find_spec("openvino"):
        sessions["openvino"] = OpenVinoSession(graph, threads=1)
    ours, video = network.load(), spec.system.task == "image-to-video"
    kind: Any = UNetSpatioTemporalConditionModel if video else UNet2DConditionModel
    theirs = kind.from_pretrained(model, subfolder="unet").eval()

    def calls(batch: int) -> Mapping[Backend, Callable[[], Tensor]]:
        inputs = examples(network.signature, bucket(network, spec, batch, *spec.sizes[0]))
        x, times, context, vector = inputs
        given = _embedded(theirs, vector, read_unet_spec(model).time_id_dim)

        def on_diffusers() -> Tensor:
            return theirs(x, times, context, **given, return_dict=False)[0]

        return {
            **{backend: partial(session, *inputs) for backend, session in sessions.items()},
            "torch": partial(ours, *inputs),
            "diffusers": on_diffusers,
        }

    return calls


def _embedded(theirs: Any, vector: Tensor, time_id_dim: int) -> dict[str, Any]:
    """Diffusers' arguments for a vector that is already what its Fourier features would be: they are passed through, so
    that both codes get the same numbers."""
    theirs.add_time_proj = torch.nn.Identity()
    if isinstance(theirs, UNetSpatioTemporalConditionModel):
        return {"added_time_ids": vector}
    ids = 6 * time_id_dim
    return {"added_cond_kwargs": {"text_embeds": vector[:, :-ids], "time_ids": vector[:, -ids:]}}


def measure(name: str, batch: int, calls: Mapping[Backend, Callable[[], Tensor]], rounds: int) -> Outcome:
    """Run them in turns, each beginning a round as often as the others, and take medians over the rounds."""
    with torch.inference_mode():
        expected = calls["diffusers"]()
        error = max(largest_error(calls[backend](), expected) for backend in GRAPHS if backend in calls)
        repeats = {backend: max(1, round(SLICE_S / cpu_seconds(call, 1))) for backend, call in calls.items()}
        times: dict[Backend, list[float]] = {backend: [] for backend in calls}
        order = list(calls)
        for _ in range(rounds):
            order = [*order[1:], order[0]]
            for backend in order:
                times[backend].append(cpu_seconds(calls[backend], repeats[backend]))

    def ratio(backend: Backend) -> float:
        pairs = zip(times[backend], times["onnxruntime"], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    medians = {backend: round(1e3 * statistics.median(times[backend]), 3) for backend in calls}
    ratios = {backend: ratio(backend) for backend in calls if backend != "onnxruntime"}
    return Outcome(name, batch, medians, ratios, error)


def main(
    rounds: Annotated[int, typer.Option(help="Turns of each back end.", min=3)] = 15,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "backends.json",
) -> None:
    """Compare processor times of one evaluation of the shipped denoisers."""
    torch.set_num_threads(1)
    outcomes = []
    for model in (ZOO / "emoji-xl", ZOO / "emoji-svd"):
        calls = backends(model)
        outcomes += [measure(f"{model.name} unet", batch, calls(batch), rounds) for batch in BATCHES]
    targets = [
        Target(f"{one.network}, batch 1: diffusers / ONNX Runtime", one.ratio["diffusers"], OVER_DIFFUSERS, True)
        for one in outcomes
        if one.batch == 1
    ]
    targets += [
        Target(f"{one.network}, batch {one.batch}: ours on torch / ONNX Runtime", one.ratio["torch"], OVER_OURS, True)
        for one in outcomes
    ]
    times, ratios = (tuple(kind) for kind in (outcomes[0].milliseconds, outcomes[0].ratio))
    columns = ("network", "batch", *(f"{one} ms" for one in times), *(f"{one}, ratio" for one in ratios), "error")
    print_rows("CPU time of one evaluation", columns, [_row(outcome) for outcome in outcomes])
    print_targets(targets)
    results = {"outcomes": [asdict(one) for one in outcomes], "targets": [target.to_json() for target in targets]}
    save(out, "backends", {**facts(), "threads": 1, "rounds": rounds, **results})
    if any(outcome.largest_error > 1e-4 for outcome in outcomes):
        console.print("the codes disagree")
        raise typer.Exit(1)


def _row(outcome: Outcome) -> tuple[object, ...]:
    times, ratios = outcome.milliseconds.values(), outcome.ratio.values()
    return (outcome.network, outcome.batch, *times, *ratios, f"{outcome.largest_error:.1e}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
