"""Every kernel compiled ahead of time for every architecture: ``python -m benchmarks.aot``, or ``make aot``.

It needs no GPU. What is compiled are the launches that the ops plan for the calls of published networks, in
``workloads.py``. Rows of ``results/aot.json`` whose kernel, tile and Triton are what they were are kept; the others are
built. With ``--check`` nothing is written: the command fails when a row is stale or missing, and builds a sample again
to compare.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import typer

from benchmarks.compile import SHARED_LIMITS, Variant, build, multiplies, problems, reads_bulk, variant
from benchmarks.report import RESULTS, ROOT, console
from benchmarks.workloads import OPS, WORKLOADS, Workload, maker

TABLE = RESULTS / "aot.json"
DOCUMENT = ROOT / "docs" / "measurements.md"
BEGIN, END = "<!-- aot: begin -->", "<!-- aot: end -->"
FP16 = ("attention", "temporal_attention", "temporal_resnet")
"""Ops with matrix products: the first workload of each is compiled for fp16 as well. The others differ from bf16 in a
conversion."""
Rows = dict[str, dict[str, Any]]


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail on a stale row.")] = False,
    sample: Annotated[int, typer.Option(help="With --check: rows to build again.")] = 20,
    table: Annotated[Path, typer.Option(help="JSON file.")] = TABLE,
) -> None:
    """Build what changed, or check that nothing did."""
    known: Rows = json.loads(table.read_text()) if table.exists() else {}
    wanted = dict(variants())
    faults = stale(known, wanted) + unlike(known, wanted, sample) if check else update(known, wanted, table)
    if not check:
        write_document(json.loads(table.read_text()))
    for fault in faults:
        console.print(fault, soft_wrap=True)
    console.print(f"{len(wanted)} rows, {len(faults)} faults")
    raise typer.Exit(bool(faults))


def variants() -> Iterator[tuple[str, tuple[str, Variant, int]]]:
    """By key, what every row is of: what asks for it, the variant and the architecture. One for each kernel, dtype and
    specialisation."""
    seen = set()
    fp16 = [next(workload for workload in WORKLOADS if workload.op == op) for op in FP16]
    asked = [(workload, torch.bfloat16) for workload in WORKLOADS] + [(workload, torch.float16) for workload in fp16]
    for workload, dtype in asked:
        if not workload.compiled:
            continue
        for architecture in SHARED_LIMITS:
            for launched in _launched(workload, dtype, architecture):
                key = f"{launched.kernel.__name__} {launched.digest} sm_{architecture}"
                if key not in seen:
                    seen.add(key)
                    name = f"{workload.op}, {workload.name}{', fp16' if dtype == torch.float16 else ''}"
                    yield key, (name, launched, architecture)


def _launched(workload: Workload, dtype: torch.dtype, architecture: int) -> list[Variant]:
    inputs = workload.inputs(maker("meta", dtype))
    return [variant(launch) for launch in OPS[workload.op].plan(*inputs, architecture).launches]


def update(known: Rows, wanted: dict[str, tuple[str, Variant, int]], table: Path) -> list[str]:
    """Build what is missing, forget what is not asked for any more, and say what must not be."""
    rows = {key: known[key] for key in wanted if key in known}
    for i, key in enumerate(key for key in wanted if key not in rows):
        begun = time.perf_counter()
        rows[key] = row(*wanted[key])
        console.print(f"{i}: {key} {rows[key]} {time.perf_counter() - begun:.1f} s", soft_wrap=True)
        # After each: a matrix takes minutes, and what was built stays built.
        table.write_text(json.dumps({key: rows[key] for key in wanted if key in rows}, indent=1) + "\n")
    table.write_text(json.dumps({key: rows[key] for key in wanted}, indent=1) + "\n")
    return [f"{key}: {fault}" for key in wanted for fault in rows[key]["faults"]]


def row(name: str, wanted: Variant, architecture: int) -> dict[str, Any]:
    """One row of the table."""
    facts = build(wanted, architecture)
    tile = {key: value for key, value in wanted.known if key in wanted.tile_names}
    return {
        "for": name, "tile": tile, "warps": wanted.num_warps, "stages": wanted.num_stages, **facts.to_json(),
        "faults": problems(facts, architecture, multiplies(wanted), reads_bulk(wanted)), "triton": triton.__version__,
    }  # fmt: skip


def stale(known: Rows, wanted: dict[str, tuple[str, Variant, int]]) -> list[str]:
    """Rows of the table that are not of the code, and the other way round; and faults that are in it."""
    faults = [f"{key}: not in the table, run make aot" for key in wanted if key not in known]
    faults += [f"{key}: in the table, and nothing asks for it, run make aot" for key in known if key not in wanted]
    faults += [f"{key}: {fault}" for key, found in known.items() for fault in found["faults"]]
    return faults + ([] if rendered(known) in DOCUMENT.read_text() else ["the table in the document is another one"])


def unlike(known: Rows, wanted: dict[str, tuple[str, Variant, int]], sample: int) -> list[str]:
    """Rows of a sample that do not come out again. Another table has another sample."""
    both = sorted(set(known) & set(wanted))
    drawn = random.Random(",".join(both)).sample(both, min(sample, len(both)))
    return [f"{key}: {again}, and the table says {known[key]}" for key in drawn
            if (again := row(*wanted[key])) != {**known[key], "for": again["for"]}]  # fmt: skip


def rendered(rows: Rows) -> str:
    """The table as Markdown: a line for each variant, a column for each architecture."""
    columns = [f"sm_{architecture}" for architecture in SHARED_LIMITS]
    lines = [
        f"| kernel, tile, warps/stages | for | {' | '.join(columns)} |", "| --- | --- |" + " --- |" * len(columns)
    ]  # fmt: skip
    cells: dict[tuple[str, str], list[dict[str, str]]] = {}
    for key, found in rows.items():
        kernel, digest, architecture = key.split()
        tile = " ".join(f"{name} {size}" for name, size in found["tile"].items())
        head = f"{kernel.removesuffix('_kernel')}, {tile}, {found['warps']}/{found['stages']}"
        facts = f"{found['registers']} r, {found['spilled_bytes']} s, {found['shared_bytes'] / 1024:.0f} K"
        facts += f", {found['wide_loads']}/{found['narrow_loads']} l"
        facts += f", {found['matrix_instructions']} mm" if found["matrix_instructions"] else ""
        facts += ", waits" if found["serialised"] else ""
        # A call may launch a kernel twice with the same tile: the two convolutions of a residual block.
        alike = cells.setdefault((head, found["for"]), [])
        if all(architecture in line for line in alike):
            alike.append({})
        line = next(line for line in alike if architecture not in line)
        line[architecture] = f"{facts}, `{digest[:6]}`"
    for (head, asked), alike in cells.items():
        lines += [f"| {head} | {asked} | {' | '.join(line.get(name, '') for name in columns)} |" for line in alike]
    return "\n".join(lines)


def write_document(rows: Rows) -> None:
    """Put the table between its marks in the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{rendered(rows)}\n{END}{after}")


if __name__ == "__main__":
    typer.run(main)
