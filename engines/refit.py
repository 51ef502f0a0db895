"""Other weights for a TensorRT engine that is loaded: those of a set of adapters, without a build.

Needs a plan that was built ``refittable``, which both flavours can only do on a machine with a GPU.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from engines.plan import collected, logger_of


def refit(trt: ModuleType, engine: Any, base: Path, graph: Path | None = None) -> None:
    """Exchange the weights of an engine that runs nothing just now. The base's come first each time: a set of adapters
    may leave alone what an earlier one changed.

    Args:
        trt: the bindings.
        engine: a deserialised plan.
        base: the graph that it was built from.
        graph: of the same network and precision, with adapters fused into its weights; None: back to the base.

    Raises:
        RuntimeError: the plan is not refittable, or TensorRT refuses the weights of ``graph``; then the engine has the
            base's. Its contexts stay valid, CUDA graphs of them do not.
    """
    _exchange(trt, engine, base)
    if graph is None:
        return
    try:
        _exchange(trt, engine, graph)
    except RuntimeError:
        _exchange(trt, engine, base)  # a part of the others may be there
        raise


def _exchange(trt: ModuleType, engine: Any, graph: Path) -> None:
    if not engine.refittable:
        raise RuntimeError(f"the plan is not refittable, so it cannot take the weights of {graph}")
    with collected(trt) as log:
        refitter = trt.Refitter(engine, logger_of(trt))
        parser = trt.OnnxParserRefitter(refitter, logger_of(trt))
        if not parser.refit_from_file(str(graph)):
            raise RuntimeError(f"the plan does not take the weights of {graph}: {'; '.join(log.errors)}")
        if missing := refitter.get_missing_weights():
            raise RuntimeError(f"{graph} lacks {len(missing)} weights of the plan, {missing[0]!r} among them")
        if not refitter.refit_cuda_engine():
            raise RuntimeError(f"TensorRT cannot exchange the weights: {'; '.join(log.errors)}")
