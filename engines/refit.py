"""The plan of a set of adapters without a build: the base's plan, with the set's weights in the place of its own.

Needs a plan that was built ``refittable``, which both flavours can only do on a machine with a GPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.plan import PLAN_FILE, REPORT_FILE, PlanReport, collected, load_tensorrt, logger_of
from engines.signature import Signature


def refit_plan(base: Path, graph: Path, folder: Path) -> None:
    """Write ``network.plan``, its signature and its report into ``folder``.

    Each set begins from the base's plan as it was built: a set may leave alone what another one changes.

    Args:
        base: a refittable plan, its signature and its report beside it.
        graph: of the same network and precision, with adapters fused into its weights.
        folder: an existing folder.

    Raises:
        ValueError: this flavour of TensorRT is not installed.
        RuntimeError: the plan is not refittable, or TensorRT refuses it or the weights of ``graph``.
    """
    trt = load_tensorrt(PlanReport.read(base.parent).flavour)
    runtime = trt.Runtime(logger_of(trt))
    with collected(trt) as log:
        engine = runtime.deserialize_cuda_engine(base.read_bytes())
        if engine is None:
            raise RuntimeError(f"TensorRT {trt.__version__} refuses {base}: {'; '.join(log.errors)}")
        _exchange(trt, engine, graph, log.errors)
        plan = engine.serialize()
    if plan is None:
        raise RuntimeError(f"TensorRT cannot write {base} with the weights of {graph}: {'; '.join(log.errors)}")
    (folder / PLAN_FILE).write_bytes(memoryview(plan))
    Signature.read(graph.parent).write(folder)
    shutil.copy(base.parent / REPORT_FILE, folder)


def _exchange(trt: ModuleType, engine: Any, graph: Path, errors: list[str]) -> None:
    if not engine.refittable:
        raise RuntimeError(f"the plan is not refittable, so it cannot take the weights of {graph}")
    refitter = trt.Refitter(engine, logger_of(trt))
    parser = trt.OnnxParserRefitter(refitter, logger_of(trt))
    if not parser.refit_from_file(str(graph)):
        raise RuntimeError(f"the plan does not take the weights of {graph}: {'; '.join(errors)}")
    if missing := refitter.get_missing_weights():
        raise RuntimeError(f"{graph} lacks {len(missing)} weights of the plan, {missing[0]!r} among them")
    if not refitter.refit_cuda_engine():
        raise RuntimeError(f"TensorRT cannot exchange the weights: {'; '.join(errors)}")
