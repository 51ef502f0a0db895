"""Every kernel against the best that torch has: ``darkroom bench kernels``, on a CUDA device. See README.md here.

``--tune`` tries every candidate tile of every shape class and everything else that the op can be run as, and writes the
fastest tile and the fastest implementation to ``kernels/measured.json``, which the ops read. ``--dry-run`` plans
everything and measures nothing; it needs no GPU.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.ops import OPS
from benchmarks.report import RESULTS, Target, console, facts, finite, print_rows, print_targets, save
from benchmarks.timing import Peaks, device, milliseconds, peaks
from benchmarks.workloads import WORKLOADS, Workload, maker
from kernels import tiles
from kernels.launch import ARCHITECTURES, architecture
from kernels.temporal_conv import conv3d_temporal_conv
from kernels.temporal_resnet import torch_temporal_resnet
from kernels.tiles import MEASURED

SPEEDUPS = {"temporal_attention": 3.0, "temporal_resnet": 2.0, "group_norm": 2.0}
"""By op, how many times faster than the best alternative its kernels are to be."""
LIMIT = 2e-2
"""Largest difference to torch, relative to the largest output: both round to bf16 more than once."""
Row = dict[str, Any]
Times = Counter[Any]
"""Milliseconds, added over workloads."""


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
    written = [
        {key: finite(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]
    outcome = {"rows": written, "targets": [target.to_json() for target in found]}
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
        others = {name: _milliseconds(call, f"{workload.op}, {workload.name}, {name}")
                  for name, call in alternatives(workload, inputs).items()}  # fmt: skip
        difference = relative(op.launch(*inputs), op.eager(*inputs))
    if not difference < LIMIT:
        raise RuntimeError(f"{workload.op}, {workload.name}: kernel and torch differ by {difference:.1e}")
    return {
        "op": workload.op,
        "workload": workload.name,
        "kernel": ours,
        **{name: others.get(name, math.nan) for name in ("torch", "compiled", "flash", "cudnn", "conv3d")},
        "floor": best.floor_ms(workload.flop, workload.moved_bytes(torch.bfloat16)),
        "speedup": min(others.values()) / ours,
        "difference": difference,
    }


def alternatives(workload: Workload, inputs: tuple[Any, ...]) -> dict[str, Callable[[], Tensor]]:
    """By name, the same call in torch: its operators, those compiled, and the libraries that it can be told to use."""
    op = OPS[workload.op]
    calls = {**op.choices, "torch": op.eager, "compiled": torch.compile(op.eager, dynamic=False)}
    if workload.op == "temporal_resnet":
        calls["conv3d"] = partial(torch_temporal_resnet, conv=conv3d_temporal_conv)
    return {name: partial(call, *inputs) for name, call in calls.items()}


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
    """By op and shape class, what was the fastest over its workloads together: the tile, and what to run."""
    number = architecture(torch.device("cuda"))
    if number is None:
        raise typer.BadParameter("no tiles were chosen for this device")
    name, found = ARCHITECTURES[number], json.loads(MEASURED.read_text()).get(ARCHITECTURES[number], {})
    # Without its kernel a temporal residual block is other ops, which run as they were measured before.
    ops = sorted({workload.op for workload in workloads}, key=lambda op: (op == "temporal_resnet", op))
    for op in ops:
        found[op] = _measured_op([workload for workload in workloads if workload.op == op], name, found)
    return {name: {op: found[op] for op in ops}}


def _measured_op(workloads: list[Workload], name: str, found: Row) -> Row:
    """The rows of one op on the architecture of that name, with what was ``found`` of others in place."""
    rows: dict[str, tuple[Times, Times]] = {}
    for workload in workloads:
        op, inputs = OPS[workload.op], workload.inputs(maker("cuda", torch.bfloat16))
        kind = op.shape_class(*inputs)
        tile_ms, other_ms = rows.setdefault(kind, (Counter(), Counter()))
        for i in range(len(op.tiles.candidates[kind])):
            with tiles.using({name: {**found, workload.op: {kind: {"backend": "triton", "tile": i}}}}):
                tile_ms[i] += _milliseconds(partial(op.launch, *inputs), f"{workload.op}, {workload.name}, tile {i}")
        with tiles.using({name: found}):
            for other, call in op.choices.items():
                other_ms[other] += _milliseconds(partial(call, *inputs), f"{workload.op}, {workload.name}, {other}")
    return {kind: _fastest(*times) for kind, times in rows.items()}


def write_measured(table: tiles.Measured) -> None:
    """Put an architecture's rows in the table that the ops read; other architectures and ops stay."""
    known = json.loads(MEASURED.read_text())
    for name, ops in table.items():
        known.setdefault(name, {}).update(ops)
    MEASURED.write_text(json.dumps(known, indent=1) + "\n")
    tiles.forget()
    console.print(f"written to {MEASURED}")


def _milliseconds(call: Callable[[], Tensor], name: str) -> float:
    """Time of a call; infinite if it cannot be made."""
    with torch.inference_mode():
        try:
            return milliseconds(call)
        except Exception as error:  # a tile larger than the shared memory, heads that a library does not take
            console.print(f"{name}: {error}", soft_wrap=True)
            return math.inf


def _fastest(tile_ms: Times, other_ms: Times) -> Row:
    """A row of the table; times are there for whoever reads it, null for what cannot be run."""
    tile = min(tile_ms, key=tile_ms.__getitem__)
    times = {"triton": tile_ms[tile], **other_ms}
    ms = {name: finite(value) for name, value in times.items()}
    return {"backend": min(times, key=times.__getitem__), "tile": tile, "ms": ms}


if __name__ == "__main__":
    typer.run(main)
