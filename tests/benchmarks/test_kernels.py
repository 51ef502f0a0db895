"""The benchmark of kernels, as far as it goes without a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import kernels as benchmark
from benchmarks.kernels import alternatives, measured, plan, targets
from benchmarks.ops import OPS
from benchmarks.timing import Peaks
from benchmarks.workloads import WORKLOADS, maker
from kernels import backend, tiles
from kernels.attention import TILES as ATTENTION


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


def test_what_is_measured_is_what_can_be_dispatched() -> None:
    assert {name: {"triton", *op.choices} for name, op in OPS.items()} == {
        name: set(names) for name, names in backend.IMPLEMENTATIONS.items()
    }


@pytest.mark.parametrize("op", ["temporal_conv", "temporal_resnet"])
def test_choices_compute_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    (some, *_) = (workload for workload in WORKLOADS if workload.op == op)
    sizes = {2: 1, 25: 3, 25 * 9216: 3 * 10, 320: 32}
    make = maker("cpu", torch.float32)
    inputs = some.inputs(lambda *shape, full=False: make(*(sizes.get(size, size) for size in shape), full=full))
    inputs = tuple(3 if isinstance(value, int) and value == 25 else value for value in inputs)
    expected = OPS[op].eager(*inputs)
    compared = alternatives(some, inputs)
    assert set(compared) == {"torch", "compiled", "conv3d"}
    for call in (*(partial(choice, *inputs) for choice in OPS[op].choices.values()), *compared.values()):
        result = call()
        rows = result.movedim(2, -1).reshape(expected.shape) if result.dim() == 5 else result
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_a_library_that_cannot_is_not_timed_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.backend.INTERPRETED", True)
    x = torch.randn(1, 3, 64)
    with pytest.raises(ValueError, match="attention: the backend is 'cudnn', and cudnn does not take"):
        OPS["attention"].choices["cudnn"](x, x, x, 1, False)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[object], float]], None]:
    """Times are made up: by the function that is called, and the table that is in place meanwhile."""

    def make_up(time_ms: Callable[[object], float]) -> None:
        monkeypatch.setattr(benchmark, "milliseconds", lambda call: time_ms(call.func))

    monkeypatch.setattr(benchmark, "architecture", lambda _: 90)
    monkeypatch.setattr(benchmark, "maker", lambda _device, dtype: maker("meta", dtype))
    monkeypatch.setattr(benchmark, "MEASURED", tmp_path / "measured.json")
    benchmark.MEASURED.write_text("{}")
    return make_up


def test_the_table_names_the_fastest_of_all(timed: Callable[..., None]) -> None:
    """The second tile is the best one of the kernel, one library is faster, and the other one cannot run."""
    choices = OPS["attention"].choices

    def time_ms(function: object) -> float:
        if function is choices["flash"]:
            raise RuntimeError("No available kernel")
        if function in (choices["cudnn"], choices["torch"]):
            return 1.0 if function is choices["cudnn"] else 3.0
        return 2.0 if ATTENTION.tile("d64", 90) is ATTENTION.candidates["d64"][1] else 2.5

    timed(time_ms)
    (one,) = (workload for workload in WORKLOADS if workload.op == "attention" and "SD3" in workload.name)
    ms = {"triton": 2.0, "torch": 3.0, "flash": None, "cudnn": 1.0}
    assert measured([one]) == {"sm_90": {"attention": {"d64": {"backend": "cudnn", "tile": 1, "ms": ms}}}}


def test_a_residual_block_is_measured_behind_its_parts(timed: Callable[..., None]) -> None:
    seen: dict[str, str | None] = {}

    def time_ms(function: object) -> float:
        if function is OPS["temporal_resnet"].choices["torch"]:
            seen.update({op: OPS[op].tiles.fastest("all", 90) for op in ("temporal_conv", "group_norm")})
        return 1.0 if function in (OPS["temporal_conv"].choices["conv3d"], OPS["group_norm"].eager) else 2.0

    timed(time_ms)
    table = measured([one for one in WORKLOADS if one.op in ("temporal_resnet", "temporal_conv", "group_norm")])
    assert seen == {"temporal_conv": "conv3d", "group_norm": "torch"}
    assert {op: row["all"]["backend"] for op, row in table["sm_90"].items()} == {**seen, "temporal_resnet": "triton"}


def test_figures_that_there_are_not_are_written_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {"op": "geglu", "workload": "one", "kernel": 1.0, "flash": math.nan, "cudnn": math.inf, "speedup": 2.0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "peaks", lambda: Peaks(1.0, 1.0))
    monkeypatch.setattr(benchmark, "device", dict)
    monkeypatch.setattr(benchmark, "measure", lambda *_: row)
    benchmark.main(op=["geglu"], tune=False, dry_run=False, out=tmp_path / "kernels.json")
    (written, *_) = json.loads((tmp_path / "kernels.json").read_text())["kernels"]["rows"]
    assert written == {**row, "flash": None, "cudnn": None}


@pytest.mark.parametrize(("arguments", "message"), [(["--op", "gelu"], "gelu"), ([], "no CUDA device")])
def test_what_cannot_be_measured_is_refused(arguments: list[str], message: str) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("this machine has one")
    import typer

    app = typer.Typer()
    app.command()(benchmark.main)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and message in done.output
