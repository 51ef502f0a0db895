"""A TensorRT plan behind a network's own call. Needs a GPU; both flavours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from engines.cache import replace_file
from engines.call import TORCH_DTYPE, Bound, Output, bind, graph_digest
from engines.plan import PlanReport, collected, load_tensorrt, logger_of
from engines.signature import Port, Signature, Sizes


class PlanSession:
    """A network in TensorRT, on a stream of its own, with buffers that stay and one CUDA graph a bucket.

    A call of fewer lanes than its bucket is filled up with copies of the last one. Calls from several threads take
    turns.
    """

    def __init__(
        self, plan: Path, graphs: bool = True, streamed_bytes: int | None = None, runtime_cache: Path | None = None
    ) -> None:
        """Load the plan, allocate and warm up.

        Args:
            plan: the .plan file, its signature and report beside it.
            graphs: whether each bucket is captured as a CUDA graph.
            streamed_bytes: of a plan built for weight streaming: how many bytes of weights stay on the GPU.
            runtime_cache: of tensorrt-rtx: a file of compiled kernels, read if it is there, written after warming up.

        Raises:
            ValueError: this flavour is not installed.
            RuntimeError: TensorRT refuses the plan: another version or GPU, or too little memory.
        """
        self.signature, report = Signature.read(plan.parent), PlanReport.read(plan.parent)
        trt = load_tensorrt(report.flavour)
        self._runtime = trt.Runtime(logger_of(trt))
        with collected(trt) as log:
            self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
            if self._engine is None:
                raise RuntimeError(f"{report.flavour} {trt.__version__} refuses {plan}: {'; '.join(log.errors)}")
        if streamed_bytes is not None:
            self._engine.weight_streaming_budget_v2 = streamed_bytes
        # With its index: another thread that calls may have another current device.
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream, self._lock = torch.cuda.Stream(), Lock()
        config = self._engine.create_runtime_config()
        cached = _use_runtime_cache(trt, config, runtime_cache) if report.flavour == "tensorrt-rtx" else None
        self._buckets = [
            _Bucket(self._engine.create_execution_context(config), index, sizes, self.signature, self._stream, graphs)
            for index, sizes in enumerate(report.buckets)
        ]
        if cached is not None and runtime_cache is not None:
            replace_file(runtime_cache, memoryview(cached.serialize()))
        self.numerics = plan_numerics(plan)
        """What the output's bytes depend on: :func:`plan_numerics`."""

    def __call__(self, *inputs: Tensor) -> Output:
        """One evaluation, in order with the current stream of the caller.

        Args:
            inputs: CUDA tensors, shaped and typed as for the network, fp32 for every real one.

        Returns:
            New tensors, fp32: one, or a tuple where the network has several outputs.

        Raises:
            TypeError: not tensors, of another dtype, or not as many as the network takes.
            ValueError: not on the GPU, or of a shape that no bucket of this plan takes.
            RuntimeError: TensorRT failed.
        """
        bound = bind(self.signature, inputs, self._device)
        bucket = self._bucket(bound.sizes)
        caller = torch.cuda.current_stream(self._device)
        with self._lock:
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                bucket.run(bound)
            caller.wait_stream(self._stream)
        for _, tensor in (*bound.inputs, *bound.outputs):
            tensor.record_stream(self._stream)
        return bound.result

    def _bucket(self, sizes: Sizes) -> _Bucket:
        fitting = [bucket for bucket in self._buckets if bucket.takes(sizes)]
        if not fitting:
            known = " or ".join(str(bucket.sizes) for bucket in self._buckets)
            raise ValueError(f"sizes {dict(sizes)} fit no bucket of this plan, which has {known}")
        return min(fitting, key=lambda bucket: bucket.lanes)


class _Bucket:
    """One profile of fixed shape: its execution context, its buffers and its CUDA graph."""

    def __init__(
        self, context: Any, index: int, sizes: Sizes, signature: Signature, stream: torch.cuda.Stream, graph: bool
    ) -> None:
        self.sizes, self.lanes = sizes, sizes["batch"]
        self._context, self._stream = context, stream
        with torch.cuda.stream(stream):
            _require(context.set_optimization_profile_async(index, stream.cuda_stream), "select a profile")
            self._inputs = self._buffers(signature.graph_inputs)
            self._outputs = self._buffers(signature.outputs)
            for name, buffer in self._inputs.items():
                _require(context.set_input_shape(name, tuple(buffer.shape)), f"take the shape of {name}")
            for name, buffer in {**self._inputs, **self._outputs}.items():
                _require(context.set_tensor_address(name, buffer.data_ptr()), f"bind {name}")
            self._execute()  # allocates and, in tensorrt-rtx, compiles: neither may happen while a graph is captured
        stream.synchronize()
        self._graph = self._captured() if graph else None

    def takes(self, sizes: Sizes) -> bool:
        """Whether a call of these sizes can run here."""
        return sizes["batch"] <= self.lanes and all(
            size == self.sizes[name] for name, size in sizes.items() if name != "batch"
        )

    def run(self, bound: Bound) -> None:
        """Fill the buffers, evaluate, and copy the lanes that were asked for, all on the current stream."""
        lanes = bound.sizes["batch"]
        for port, tensor in bound.inputs:
            self._inputs[port.name][:lanes].copy_(tensor)
            self._inputs[port.name][lanes:].copy_(tensor[-1:].expand(self.lanes - lanes, *tensor.shape[1:]))
        if self._graph is None:
            self._execute()
        else:
            self._graph.replay()
        for port, tensor in bound.outputs:
            tensor.copy_(self._outputs[port.name][:lanes])

    def _buffers(self, ports: Sequence[Port]) -> dict[str, Tensor]:
        return {p.name: torch.zeros(p.shape(self.sizes), dtype=TORCH_DTYPE[p.dtype], device="cuda") for p in ports}

    def _execute(self) -> None:
        _require(self._context.execute_async_v3(self._stream.cuda_stream), "execute")

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads run networks meanwhile, which allocate; that is not to end the capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._execute()
        return graph


def plan_numerics(plan: Path) -> str:
    """What the bytes depend on that a session of this plan computes: library, GPU and plan. ``fixed-N``: every call
    runs N lanes.

    Raises:
        ValueError: this flavour is not installed.
    """
    report = PlanReport.read(plan.parent)
    lanes = {sizes["batch"] for sizes in report.buckets}
    invariance = f"fixed-{lanes.pop()}" if len(lanes) == 1 else "fast"
    gpu, version = torch.cuda.get_device_name(), load_tensorrt(report.flavour).__version__
    return "/".join([f"{report.flavour}-{version}", gpu, graph_digest(plan)[:16], invariance])


def _use_runtime_cache(trt: Any, config: Any, path: Path | None) -> Any:
    """Let tensorrt-rtx keep what it compiles, and compile before the first call rather than behind it: a kernel that is
    exchanged while rows are in flight would change their bytes."""
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    cache = config.create_runtime_cache()
    if path is not None and path.exists():
        cache.deserialize(path.read_bytes())  # what does not fit this version is ignored, and compiled again
    config.set_runtime_cache(cache)
    return cache


def _require(done: bool, what: str) -> None:
    if not done:
        raise RuntimeError(f"TensorRT could not {what}")
