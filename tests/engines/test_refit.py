"""The order of a refit, and what comes of one that fails, on a stand-in of the bindings. What it computes is checked in
tests/gpu/test_engines.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from engines.refit import refit

BASE, SET = Path("base.onnx"), Path("set.onnx")


class Bindings:
    """TensorRT, as far as a refit goes."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None:
            pass

    def __init__(self, refuses: str = "", lacks: str = "", fails: str = "") -> None:
        self.refuses, self.lacks, self.fails = refuses, lacks, fails
        self.exchanged: list[str] = []
        bindings = self

        class Refitter:
            def __init__(self, engine: Any, _logger: Any) -> None:
                self.given = ""

            def get_missing_weights(self) -> list[str]:
                return ["conv_in.weight"] if bindings.lacks == self.given else []

            def refit_cuda_engine(self) -> bool:
                bindings.exchanged.append(self.given)
                return bindings.fails != self.given

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, _logger: Any) -> None:
                self.refitter = refitter

            def refit_from_file(self, model: str) -> bool:
                self.refitter.given = model
                return bindings.refuses != model

        self.Refitter, self.OnnxParserRefitter = Refitter, OnnxParserRefitter


class Engine:
    def __init__(self, refittable: bool = True) -> None:
        self.refittable = refittable


def run(trt: Bindings, graph: Path | None, refittable: bool = True) -> list[str]:
    refit(cast(ModuleType, trt), Engine(refittable), BASE, graph)
    return trt.exchanged


def test_the_base_comes_first_each_time() -> None:
    trt = Bindings()
    assert run(trt, SET) == ["base.onnx", "set.onnx"]
    assert run(trt, Path("other.onnx"))[2:] == ["base.onnx", "other.onnx"]
    assert run(Bindings(), None) == ["base.onnx"]


@pytest.mark.parametrize(
    ("wrong", "said", "exchanged"),
    [
        ("refuses", "does not take the weights of set.onnx", ["base.onnx", "base.onnx"]),
        ("lacks", r"set\.onnx lacks 1 weights of the plan, 'conv_in\.weight' among them", ["base.onnx", "base.onnx"]),
        ("fails", "cannot exchange the weights", ["base.onnx", "set.onnx", "base.onnx"]),
    ],
)
def test_weights_that_are_refused_leave_the_base(wrong: str, said: str, exchanged: list[str]) -> None:
    trt = Bindings(**{wrong: str(SET)})
    with pytest.raises(RuntimeError, match=said):
        run(trt, SET)
    assert trt.exchanged == exchanged


def test_a_plan_that_cannot_be_refitted_says_so() -> None:
    trt = Bindings()
    with pytest.raises(RuntimeError, match="the plan is not refittable"):
        run(trt, SET, refittable=False)
    assert not trt.exchanged
