"""ONNX graphs to TensorRT plans, for both flavours: mainline ``tensorrt``, which builds for the GPU of its machine, and
``tensorrt-rtx``, whose builder needs no GPU and is told the architectures.

One module serves both: RTX has everything of mainline's that is used here. Precision was decided in the graph. Plans
are strongly typed and do without TF32, so no flag here changes a number.
"""

from __future__ import annotations

import importlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from engines.buckets import Buckets
from engines.cache import replace_file
from engines.signature import Signature, Sizes

Flavour = Literal["tensorrt-rtx", "tensorrt"]
MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt",),
}
"""Import names, in the order in which they are tried."""
PLAN_FILE, REPORT_FILE = "network.plan", "plan.json"
MAX_BUCKETS = 2
"""Each bucket is an optimisation profile with tactics of its own: three made a plan 1.8 times as large."""


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is built for."""

    flavour: Flavour
    buckets: tuple[Sizes, ...]
    """One or two sizes of every symbol of the graph, each a profile of fixed shape: fixed shapes are fast and their
    memory is known, dynamic ones neither."""
    architectures: tuple[str, ...] = ()
    """``sm80``, ``sm89``, ... or ``current``, for tensorrt-rtx alone. Empty: its default list."""
    weight_streaming: bool = False
    """Whether a session may keep part of the weights in host memory."""
    refittable: bool = False
    """Whether the weights can be exchanged; such a plan can only be built on a machine with a GPU."""
    memory_bytes: int = 8 * 2**30
    """What the build may use of the GPU to try out tactics, and a layer of the plan as its workspace. A build goes on
    beside a worker that serves, and without a limit would take all that is free."""

    def __post_init__(self) -> None:
        if self.flavour not in MODULES:
            raise ValueError(f"flavour={self.flavour!r}, expected one of {', '.join(MODULES)}")
        if not 1 <= len(self.buckets) <= MAX_BUCKETS:
            raise ValueError(f"buckets holds {len(self.buckets)} sizes, expected 1 to {MAX_BUCKETS}")
        if self.memory_bytes <= 0:
            raise ValueError(f"memory_bytes={self.memory_bytes}, expected a positive number")
        if self.architectures and self.flavour != "tensorrt-rtx":
            raise ValueError("architectures are given, but mainline tensorrt builds for the GPU of its machine alone")


@dataclass(frozen=True)
class PlanReport:
    """What was built, from the network definition and the build's log."""

    flavour: Flavour
    version: str
    architectures: tuple[str, ...]
    buckets: tuple[dict[str, int], ...]
    layers: dict[str, int]
    """How many layers of each kind the network definition has."""
    dtypes: dict[str, int]
    """How many layers compute each type: FLOAT, HALF, BF16, FP8, INT8, and INT64 for shapes."""
    warnings: tuple[str, ...]
    bytes: int
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> PlanReport:
        """Read what :func:`build_plan` left beside a plan."""
        data = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        lists = {name: tuple(data[name]) for name in ("architectures", "buckets", "warnings")}
        return cls(**{**data, **lists})


def build_plan(graph: Path, options: PlanOptions, folder: Path, timing_cache: Path | None = None) -> PlanReport:
    """Write ``network.plan``, its signature and its report into ``folder``.

    Args:
        graph: the ONNX file, its signature beside it.
        options: what the plan is for.
        folder: an existing folder.
        timing_cache: a file of measured tactics that mainline reads first and extends; tensorrt-rtx chooses its kernels
            when the plan is loaded, and has none.

    Raises:
        ValueError: the library is not installed, has no such architecture, or a bucket does not name the symbols of the
            graph.
        RuntimeError: TensorRT refuses the graph or fails to build; the message holds what it said.
    """
    trt, signature = load_tensorrt(options.flavour), Signature.read(graph.parent)
    began = time.monotonic()
    with collected(trt) as log:
        builder = trt.Builder(logger_of(trt))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger_of(trt))
        if not parser.parse_from_file(str(graph)):
            said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RuntimeError(f"{options.flavour} refuses {graph}: {said}")
        config = _configured(trt, builder, signature, options)
        if timing_cache is not None and options.flavour == "tensorrt":
            old = timing_cache.read_bytes() if timing_cache.exists() else b""
            config.set_timing_cache(config.create_timing_cache(old), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"{options.flavour} cannot build {graph}: {'; '.join(log.errors) or 'it gives no reason'}")
    if timing_cache is not None and options.flavour == "tensorrt":
        replace_file(timing_cache, memoryview(config.get_timing_cache().serialize()))
    (folder / PLAN_FILE).write_bytes(memoryview(plan))
    signature.write(folder)
    seconds = round(time.monotonic() - began, 2)
    report = _report(trt, network, options, tuple(log.warnings), plan.nbytes, seconds)
    (folder / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def buckets_of(plan: Path) -> Buckets:
    """What a plan takes, as the files beside it say."""
    return Buckets(Signature.read(plan.parent), PlanReport.read(plan.parent).buckets)


@cache
def load_tensorrt(flavour: Flavour) -> ModuleType:
    """The bindings of one flavour.

    Raises:
        ValueError: they are not installed.
    """
    for name in MODULES[flavour]:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ValueError(f"{flavour} is not installed: there is no module {' or '.join(MODULES[flavour])}")


class BuildLog:
    """What TensorRT said since it was last cleared."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []


# TensorRT keeps the first logger that it is given for the life of the process, so there is one a flavour.
@cache
def logger_of(trt: ModuleType) -> Any:
    """The logger of this process, which fills ``log`` of its own."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.target = BuildLog()

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.target.errors.append(msg)
            elif severity == trt.ILogger.WARNING:
                self.target.warnings.append(msg)

    return Logger()


@contextmanager
def collected(trt: ModuleType) -> Iterator[BuildLog]:
    """What TensorRT says within this block."""
    logger = logger_of(trt)
    logger.target = BuildLog()
    yield logger.target


def _configured(trt: ModuleType, builder: Any, signature: Signature, options: PlanOptions) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # a graph that says fp32 means it
    for pool in (trt.MemoryPoolType.WORKSPACE, trt.MemoryPoolType.TACTIC_DRAM):
        config.set_memory_pool_limit(pool, options.memory_bytes)
    for sizes in options.buckets:
        if missing := set(signature.symbols) ^ set(sizes):
            raise ValueError(f"bucket {dict(sizes)} and the graph differ in {sorted(missing)}")
        profile = builder.create_optimization_profile()
        for port in signature.graph_inputs:
            shape = port.shape(sizes)
            profile.set_shape(port.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.architectures:
        config.num_compute_capabilities = len(options.architectures)
        for i, name in enumerate(options.architectures):
            config.set_compute_capability(_architecture(trt, name), i)
    return config


def _architecture(trt: ModuleType, name: str) -> Any:
    known = trt.ComputeCapability.__members__
    if name.upper() not in known or name.upper() == "NONE":
        names = ", ".join(sorted(each.lower() for each in known if each != "NONE"))
        raise ValueError(f"architecture {name!r} is none of tensorrt-rtx, which has {names}")
    return known[name.upper()]


def _report(
    trt: ModuleType, network: Any, options: PlanOptions, warnings: tuple[str, ...], size: int, seconds: float
) -> PlanReport:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    return PlanReport(
        flavour=options.flavour,
        version=trt.__version__,
        architectures=options.architectures,
        buckets=tuple(dict(sizes) for sizes in options.buckets),
        layers=dict(sorted(Counter(layer.type.name for layer in layers).items())),
        dtypes=dict(sorted(Counter(output.dtype.name for output in outputs).items())),
        warnings=warnings,
        bytes=size,
        seconds=seconds,
    )
