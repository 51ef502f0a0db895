"""Every kernel against the best that torch has: ``python -m benchmarks.kernels``, on a CUDA device. See README.md here.

``--tune`` tries every candidate tile of every shape class, and writes which one and whether the kernel or torch was
faster to ``kernels/measured.json``, which the ops read. ``--dry-run`` needs no GPU: it plans everything and measures
nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.report import RESULTS, Target, console, facts, finite, print_rows, print_targets, save
from benchmarks.timing import Peaks, device, milliseconds, peaks
from benchmarks.workloads import OPS, WORKLOADS, Workload, maker
from kernels import tiles
from kernels.launch import ARCHITECTURES, architecture
from kernels.tiles import MEASURED

SPEEDUPS = {"temporal_attention": 3.0, "temporal_resnet": 2.0, "group_norm": 2.0}
"""By op, how many times faster than the best alternative its kernels are to be."""
LIMIT = 2e-2
"""Largest difference to torch, relative to the largest output: both round to bf16 more than once."""
Row = dict[str, Any]


def main(
    op: Annotated[list[str] | None, typer.Option(help="Only these ops.")] = None,
    tune: Annotated[bool, typer.Option(help="Try every tile and write the table that the ops read.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Plan everything, on any machine, and measure nothing.")] = False,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "kernels.json",
) -> None:
    """Measure kernels, torch and what the memory and the tensor cores allow."""
    if unknown := set(op or ()) - set(OPS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected some of {', '.join(OPS)}")
    workloads = [workload for workload in WORKLOADS if not op or workload.op in op]
    if dry_run:
        for workload in workloads:
            plan(workload)
        return
    if not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device; --dry-run needs none")
    if tune:
        write_measured(measured(workloads))
    best = peaks()
    rows = [measure(workload, best) for workload in workloads]
    print_rows("Milliseconds", tuple(rows[0]), [tuple(row.values()) for row in rows])
    found = targets(rows)
    print_targets(found)
    outcome = {"rows": rows, "targets": [target.to_json() for target in found]}
    save(out, "kernels", {**facts(), "device": device(), "peaks": vars(best), **outcome})


def plan(workload: Workload) -> None:
    """Plan a call for every architecture, and say what it moves."""
    op, inputs = OPS[workload.op], workload.inputs(maker("meta", torch.bfloat16))
    expected = op.eager(*inputs)
    for number in ARCHITECTURES:
        planned = op.plan(*inputs, number)
        assert planned.output.shape == expected.shape and planned.output.dtype == expected.dtype
        assert all(0 < size < 2**31 for launch in planned.launches for size in launch.grid)
        assert all(size < 2**16 for launch in planned.launches for size in launch.grid[1:])
    moved = workload.moved_bytes(torch.bfloat16)
    console.print(f"{workload.op}, {workload.name}: {moved / 2**20:.0f} MiB, {workload.flop / 1e9:.0f} GFLOP")


def measure(workload: Workload, best: Peaks) -> Row:
    """One workload by every implementation, in milliseconds; the difference is between the kernel and torch."""
    op, inputs = OPS[workload.op], workload.inputs(maker("cuda", torch.bfloat16))
    with torch.inference_mode():
        ours = milliseconds(lambda: op.launch(*inputs))
        others = {name: milliseconds(call) for name, call in alternatives(workload, inputs).items()}
        difference = relative(op.launch(*inputs), op.eager(*inputs))
    if not difference < LIMIT:
        raise RuntimeError(f"{workload.op}, {workload.name}: kernel and torch differ by {difference:.1e}")
    return {
        "op": workload.op,
        "workload": workload.name,
        "kernel": ours,
        **{name: others.get(name, math.nan) for name in ("torch", "compiled", "flash", "cudnn")},
        "floor": best.floor_ms(workload.flop, workload.moved_bytes(torch.bfloat16)),
        "speedup": min(others.values()) / ours,
        "difference": difference,
    }


def alternatives(workload: Workload, inputs: tuple[Any, ...]) -> dict[str, Callable[[], Tensor]]:
    """By name, the same call in torch: its operators, those compiled, and for attention each library behind them."""
    eager = OPS[workload.op].eager
    compiled = torch.compile(eager, dynamic=False)
    calls = {"torch": lambda: eager(*inputs), "compiled": lambda: compiled(*inputs)}
    if workload.op == "attention":
        calls["flash"] = lambda: _behind(SDPBackend.FLASH_ATTENTION, eager, inputs)
        calls["cudnn"] = lambda: _behind(SDPBackend.CUDNN_ATTENTION, eager, inputs)
    return calls


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest of ``b``."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def targets(rows: list[Row]) -> list[Target]:
    """The worst workload of each op that has one, and attention against both libraries."""
    found = [
        Target(f"{op}: best alternative / kernel", min(row["speedup"] for row in rows if row["op"] == op), limit, True)
        for op, limit in SPEEDUPS.items()
        if any(row["op"] == op for row in rows)
    ]
    attention = [row for row in rows if row["op"] == "attention"]
    for name, limit in (("flash", 1.0), ("cudnn", 0.7)):
        if attention:
            found.append(Target(f"attention: {name} / kernel", min(row[name] / row["kernel"] for row in attention),
                                limit, True))  # fmt: skip
    return found


def measured(workloads: list[Workload]) -> tiles.Measured:
    """By op and shape class, the fastest tile over its workloads together, and whether torch is faster than that."""
    number = architecture(torch.device("cuda"))
    if number is None:
        raise typer.BadParameter("no tiles were chosen for this device")
    name, table = ARCHITECTURES[number], tiles.Measured()
    table[name] = {}
    for workload in workloads:
        op, inputs = OPS[workload.op], workload.inputs(maker("cuda", torch.bfloat16))
        kind = op.shape_class(*inputs)
        row = table[name].setdefault(workload.op, {}).setdefault(kind, {"times": {}, "torch_ms": 0.0})
        for i in range(len(op.tiles.candidates[kind])):
            forced = {name: {workload.op: {kind: {"backend": "triton", "tile": i}}}}
            if workload.op == "temporal_resnet":  # its convolutions have the tiles of temporal_conv
                forced[name]["temporal_conv"] = forced[name]["temporal_resnet"]
            row["times"][i] = row["times"].get(i, 0.0) + _forced_ms(workload, inputs, forced)
        row["torch_ms"] += min(milliseconds(call) for call in alternatives(workload, inputs).values())
    return {name: {op: {kind: _fastest(row) for kind, row in kinds.items()} for op, kinds in table[name].items()}}


def write_measured(table: tiles.Measured) -> None:
    """Put an architecture's rows in the table that the ops read; other architectures and ops stay."""
    known = json.loads(MEASURED.read_text())
    for name, ops in table.items():
        known.setdefault(name, {}).update(ops)
    MEASURED.write_text(json.dumps(known, indent=1) + "\n")
    tiles.forget()
    console.print(f"written to {MEASURED}")


def _forced_ms(workload: Workload, inputs: tuple[Any, ...], forced: tiles.Measured) -> float:
    with tiles.using(forced), torch.inference_mode():
        try:
            return milliseconds(lambda: OPS[workload.op].launch(*inputs))
        except Exception as error:  # Triton's own: a tile that takes more shared memory or registers than there are
            console.print(f"{workload.op}, {workload.name}, {forced}: {error}", soft_wrap=True)
            return math.inf


def _fastest(row: dict[str, Any]) -> dict[str, Any]:
    best = min(row["times"], key=row["times"].__getitem__)
    backend = "triton" if row["times"][best] < row["torch_ms"] else "torch"
    return {
        "backend": backend,
        "tile": best,
        "triton_ms": finite(row["times"][best]),
        "torch_ms": finite(row["torch_ms"]),
    }


def _behind(backend: SDPBackend, call: Callable[..., Tensor], inputs: tuple[Any, ...]) -> Tensor:
    with sdpa_kernel(backend):
        return call(*inputs)


if __name__ == "__main__":
    typer.run(main)
