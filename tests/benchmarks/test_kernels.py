"""The benchmark of kernels, as far as it goes without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import kernels as benchmark
from benchmarks.kernels import plan, targets
from benchmarks.timing import Peaks
from benchmarks.workloads import OPS, WORKLOADS
from kernels import backend, tiles


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: f"{workload.op}, {workload.name}")
def test_every_workload_can_be_planned(workload: object) -> None:
    plan(workload)


def test_every_op_has_workloads_and_its_own_table() -> None:
    assert {workload.op for workload in WORKLOADS} == set(OPS) == set(backend.OPS)
    assert {name: op.tiles.op for name, op in OPS.items()} == {name: name for name in OPS}


def test_bytes_of_a_workload() -> None:
    (workload,) = (one for one in WORKLOADS if one.op == "geglu" and "8192" in one.name)
    assert workload.moved_bytes(torch.bfloat16) == 2 * 8192 * (2 * 2560 + 2560)


def test_the_floor_is_the_slower_of_compute_and_memory() -> None:
    peaks = Peaks(flop_per_s=1e15, bytes_per_s=1e12)
    assert peaks.floor_ms(2e12, 1e9) == pytest.approx(2.0) and peaks.floor_ms(2e12, 5e9) == pytest.approx(5.0)


def test_targets_are_of_the_worst_workload() -> None:
    rows = [{"op": "group_norm", "speedup": 2.5}, {"op": "group_norm", "speedup": 1.5}]
    rows += [{"op": "attention", "speedup": 0.9, "kernel": 2.0, "flash": 3.0, "cudnn": 1.0}]
    found = {target.name: (target.value, target.met) for target in targets(rows)}
    assert found == {
        "group_norm: best alternative / kernel": (1.5, False),
        "attention: flash / kernel": (1.5, True),
        "attention: cudnn / kernel": (0.5, False),
    }


def test_measurements_of_other_architectures_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "MEASURED", tmp_path / "measured.json")
    row = {"all": {"backend": "torch", "tile": 0}}
    benchmark.MEASURED.write_text(json.dumps({"sm_80": {"geglu": row}, "sm_90": {"blend": row, "geglu": row}}))
    table: tiles.Measured = {"sm_90": {"geglu": {"all": {"backend": "triton", "tile": 2}}}}
    benchmark.write_measured(table)
    written = json.loads(benchmark.MEASURED.read_text())
    assert written == {"sm_80": {"geglu": row}, "sm_90": {"blend": row, **table["sm_90"]}}


def test_the_fastest_tile_and_backend() -> None:
    assert benchmark._fastest({"times": {0: 3.0, 1: 2.0}, "torch_ms": 2.5})["backend"] == "triton"
    slower = benchmark._fastest({"times": {0: 3.0, 1: 2.75}, "torch_ms": 2.5})
    assert slower == {"backend": "torch", "tile": 1, "triton_ms": 2.75, "torch_ms": 2.5}


@pytest.mark.parametrize(("arguments", "message"), [(["--op", "gelu"], "gelu"), ([], "no CUDA device")])
def test_what_cannot_be_measured_is_refused(arguments: list[str], message: str) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("this machine has one")
    import typer

    app = typer.Typer()
    app.command()(benchmark.main)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and message in done.output
