"""What comes of a refit, on a stand-in of the bindings. What it computes is checked in tests/gpu/test_engines.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engines import refit
from engines.plan import PLAN_FILE, PlanReport
from engines.refit import refit_plan
from engines.signature import Signature, port


class Bindings:
    """TensorRT, as far as a refit goes; an engine is the bytes of its plan."""

    __version__ = "0"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None:
            pass

    def __init__(self, refittable: bool = True, refuses: str = "") -> None:
        bindings, self.refuses = self, refuses

        class Engine:
            def __init__(self, plan: bytes) -> None:
                self.plan, self.refittable = plan, refittable

            def serialize(self) -> bytes | None:
                return None if refuses == "write" else self.plan

        class Runtime:
            def __init__(self, _logger: Any) -> None: ...

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                return None if refuses == "plan" else Engine(plan)

        class Refitter:
            def __init__(self, engine: Engine, _logger: Any) -> None:
                self.engine, self.graph = engine, b""

            def get_missing_weights(self) -> list[str]:
                return ["conv_in.weight"] if bindings.refuses == "missing" else []

            def refit_cuda_engine(self) -> bool:
                self.engine.plan += self.graph
                return refuses != "exchange"

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, _logger: Any) -> None:
                self.refitter = refitter

            def refit_from_file(self, model: str) -> bool:
                self.refitter.graph = Path(model).read_bytes()
                return refuses != "weights"

        self.Runtime, self.Refitter, self.OnnxParserRefitter = Runtime, Refitter, OnnxParserRefitter


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan and its report, the graph of a set with its signature, and a folder for the new plan."""
    for folder in ("plan", "set", "other", "new"):
        (tmp_path / folder).mkdir()
    report = PlanReport("tensorrt-rtx", "0", ("sm89",), ({"batch": 2},), {}, {}, (), 4, 0.0)
    (tmp_path / "plan" / refit.REPORT_FILE).write_text(json.dumps(asdict(report)))
    (tmp_path / "plan" / PLAN_FILE).write_bytes(b"base")
    for folder in ("set", "other"):
        Signature((port("x", ("batch", 4)),), (port("y", ("batch", 4)),)).write(tmp_path / folder)
        (tmp_path / folder / "network.onnx").write_bytes(f" + {folder}".encode())
    return tmp_path / "plan" / PLAN_FILE


@pytest.fixture
def refitted(plan: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def run(graph: str = "set", **bindings: Any) -> Path:
        monkeypatch.setattr(refit, "load_tensorrt", lambda _: Bindings(**bindings))
        refit_plan(plan, plan.parent.parent / graph / "network.onnx", new := plan.parent.parent / "new")
        return new

    return run


def test_every_set_begins_from_the_base(plan: Path, refitted: Callable[..., Path]) -> None:
    new = refitted("set")
    assert (new / PLAN_FILE).read_bytes() == b"base + set"
    assert PlanReport.read(new) == PlanReport.read(plan.parent) and Signature.read(new).inputs[0].name == "x"
    assert (refitted("other") / PLAN_FILE).read_bytes() == b"base + other"
    assert plan.read_bytes() == b"base"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"refuses": "plan"}, "refuses .*plan"),
        ({"refittable": False}, "the plan is not refittable"),
        ({"refuses": "weights"}, "does not take the weights of .*set"),
        ({"refuses": "missing"}, "lacks 1 weights of the plan, 'conv_in.weight' among them"),
        ({"refuses": "exchange"}, "cannot exchange the weights"),
        ({"refuses": "write"}, "cannot write .* with the weights of .*set"),
    ],
)
def test_what_is_refused_leaves_no_plan(
    plan: Path, wrong: dict[str, Any], said: str, refitted: Callable[..., Path]
) -> None:
    with pytest.raises(RuntimeError, match=said):
        refitted(**wrong)
    assert not list((plan.parent.parent / "new").iterdir())
    assert (refitted() / PLAN_FILE).read_bytes() == b"base + set"
