"""Our networks against diffusers' on the same weights: ``python -m benchmarks.networks``. See README.md here.

The networks are small ones of the published shapes, with random weights: what is compared is the code around the large
matrix products, which are the same for both. Both run in turns in one process on one thread, and what counts is the
median ratio of their processor times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import SD3Transformer2DModel, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from benchmarks.report import RESULTS, Target, console, facts, print_rows, print_targets, save
from benchmarks.timing import cpu_seconds
from models.blocks import fourier_features
from models.mmdit import MMDiT
from models.spec.mmdit import MMDiTSpec
from models.spec.unet import UNetSpec
from models.unet import UNet

SDXL = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (1, 2, 3),
    "cross_attention_dim": 64,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "use_linear_projection": True,
}
SVD = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "num_attention_heads": (1, 2),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 8,
}
SD3 = {
    "sample_size": 32,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "joint_attention_dim": 96,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 48,
    "pos_embed_max_size": 32,
}
LIMITS = {1: 0.85, 8: 1.02}
"""By batch size: our processor time in units of diffusers'."""


@dataclass(frozen=True)
class Case:
    """One network in both codes, and inputs of any batch size."""

    name: str
    ours: Callable[[int], Callable[[], Tensor]]
    theirs: Callable[[int], Callable[[], Tensor]]


@dataclass(frozen=True)
class Outcome:
    """Medians of one case at one batch size."""

    network: str
    batch: int
    ratio: float
    ours_ms: float
    theirs_ms: float
    largest_difference: float


def sdxl() -> Case:
    """Three levels, 1 to 3 transformer layers, a vector of pooled text and sizes."""
    theirs = UNet2DConditionModel(**SDXL).eval()
    ours = _same(UNet(UNetSpec.from_config(dict(theirs.config))), theirs)
    pooled = 80 - 6 * 8

    def inputs(batch: int) -> tuple[Tensor, ...]:
        x, times = _randn(batch, 4, 16, 16), torch.full((batch,), 500.0)
        return x, times, _randn(batch, 77, 64), _randn(batch, pooled), torch.full((batch, 6), 128.0)

    def run_ours(batch: int) -> Callable[[], Tensor]:
        x, times, context, text, sizes = inputs(batch)
        return lambda: ours(x, times, context, torch.cat([text, fourier_features(sizes, 8).flatten(1)], dim=1))

    def run_theirs(batch: int) -> Callable[[], Tensor]:
        x, times, context, text, sizes = inputs(batch)
        added = {"text_embeds": text, "time_ids": sizes}
        return lambda: theirs(x, times, context, added_cond_kwargs=added, return_dict=False)[0]

    return Case("SDXL-shaped UNet", run_ours, run_theirs)


def svd() -> Case:
    """Two levels with temporal layers, eight frames, one context token."""
    theirs = UNetSpatioTemporalConditionModel(**SVD).eval()
    ours = _same(UNet(UNetSpec.from_config(dict(theirs.config))), theirs)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        x, times = _randn(batch, 8, 8, 16, 16), torch.full((batch,), 1.0)
        return x, times, _randn(batch, 1, 32), torch.tensor([[6.0, 127.0, 0.02]]).expand(batch, 3)

    def run_ours(batch: int) -> Callable[[], Tensor]:
        x, times, context, numbers = inputs(batch)
        return lambda: ours(x, times, context, fourier_features(numbers, 8).flatten(1))

    def run_theirs(batch: int) -> Callable[[], Tensor]:
        x, times, context, numbers = inputs(batch)
        return lambda: theirs(x, times, context, added_time_ids=numbers, return_dict=False)[0]

    return Case("SVD-shaped UNet", run_ours, run_theirs)


def sd3() -> Case:
    """Three joint blocks over 256 picture and 154 text tokens."""
    theirs = SD3Transformer2DModel(**SD3).eval()
    ours = _same(MMDiT(MMDiTSpec.from_config(dict(theirs.config))), theirs)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return _randn(batch, 16, 32, 32), torch.full((batch,), 500.0), _randn(batch, 154, 96), _randn(batch, 48)

    def run_ours(batch: int) -> Callable[[], Tensor]:
        given = inputs(batch)
        return lambda: ours(*given)

    def run_theirs(batch: int) -> Callable[[], Tensor]:
        x, times, context, pooled = inputs(batch)
        return lambda: theirs(x, context, pooled, times, return_dict=False)[0]

    return Case("SD3-shaped MMDiT", run_ours, run_theirs)


def measure(case: Case, batch: int, pairs: int) -> Outcome:
    """Run both in turns, whoever is first alternating, and take medians over the pairs."""
    torch.manual_seed(0)
    ours = case.ours(batch)
    torch.manual_seed(0)
    theirs = case.theirs(batch)
    with torch.inference_mode():
        first, second = ours(), theirs()
        difference = float((first - second).abs().max() / second.abs().max())
        repeats = max(1, round(0.05 / cpu_seconds(theirs, 1)))
        times = []
        for i in range(pairs):
            order = (ours, theirs) if i % 2 else (theirs, ours)
            spent = {run: cpu_seconds(run, repeats) for run in order}
            times.append((spent[ours], spent[theirs]))
    ratio = statistics.median(a / b for a, b in times)
    a, b = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return Outcome(case.name, batch, round(ratio, 3), round(a, 3), round(b, 3), float(f"{difference:.2g}"))


def main(
    pairs: Annotated[int, typer.Option(help="Pairs of runs of each case.", min=3)] = 15,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "networks.json",
) -> None:
    """Compare processor times at batch sizes 1 and 8."""
    torch.set_num_threads(1)
    outcomes = [measure(case, batch, pairs) for case in (sdxl(), svd(), sd3()) for batch in LIMITS]
    targets = [
        Target(
            f"{outcome.network}, batch {outcome.batch}: ours / diffusers", outcome.ratio, LIMITS[outcome.batch], False
        )
        for outcome in outcomes
    ]
    columns = ("network", "batch", "ratio", "ours ms", "diffusers ms", "largest difference")
    print_rows("CPU time of one evaluation", columns, [tuple(asdict(outcome).values()) for outcome in outcomes])
    print_targets(targets)
    about = {**facts(), "threads": 1, "pairs": pairs}
    results = [asdict(outcome) for outcome in outcomes]
    save(out, "networks", {**about, "outcomes": results, "targets": [target.to_json() for target in targets]})
    if any(outcome.largest_difference > 1e-4 for outcome in outcomes):
        console.print("the two codes disagree")
        raise typer.Exit(1)


def _same(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    ours.load_state_dict(theirs.state_dict())
    return ours.eval()


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
