"""ONNX Runtime behind a network's own call: torch tensors in, torch tensors out, no copies between."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from engines.call import Bound, Output, bind, graph_digest, processor
from engines.signature import Signature

NUMPY_DTYPE = {"float32": np.float32, "int64": np.int64}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's name for its back end, by the type of the torch device whose tensors it takes."""


class OnnxSession:
    """A network on ONNX Runtime, called like the torch module that it was exported from.

    May be called from any thread, from several at once too.
    """

    def __init__(self, path: Path, threads: int, device: str = "cpu") -> None:
        """Load and optimise the graph; takes tenths of a second.

        Args:
            path: the .onnx file, its signature beside it.
            threads: threads that one operation may use. They do not change the result.
            device: ``cpu``, or ``cuda`` where onnxruntime-gpu is installed.

        Raises:
            ValueError: the file has no signature, or this ONNX Runtime has no such device.
        """
        self.signature = Signature.read(path.parent)
        provider = PROVIDERS.get(device, device)
        if provider not in (available := onnxruntime.get_available_providers()):
            raise ValueError(f"device={device!r} is not one of this ONNX Runtime, which has {', '.join(available)}")
        self._device = torch.device(device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that spins while it waits takes the core from whoever has work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights of 8 bits become constants in fp32, once: only a constant's product has the same bytes for one row as
        # for several. ONNX Runtime's own products of 8 bits take as long.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        self.numerics = graph_numerics(path, device)
        """What the output's bytes depend on."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs' names, in the order of the call."""
        return tuple(port.name for port in self.signature.inputs)

    def __call__(self, *inputs: Tensor) -> Output:
        """One evaluation.

        Args:
            inputs: tensors of the session's device, shaped and typed as for the network, fp32 for every real one.

        Returns:
            New tensors, fp32: one, or a tuple where the network has several outputs.

        Raises:
            TypeError: not tensors, of another dtype, or not as many as the network takes.
            ValueError: on another device, or of a shape that the network does not take.
        """
        bound = bind(self.signature, inputs, self._device)
        self._run(bound)
        return bound.result

    def _run(self, bound: Bound) -> None:
        binding = self._session.io_binding()
        for ports, attach in ((bound.inputs, binding.bind_input), (bound.outputs, binding.bind_output)):
            for port, tensor in ports:  # the binding holds addresses only; ``bound`` keeps the tensors
                kind = NUMPY_DTYPE[port.dtype]
                attach(port.name, self._device.type, 0, kind, tuple(tensor.shape), tensor.data_ptr())
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)
        if self._device.type == "cuda":
            binding.synchronize_outputs()


def restored_bytes(path: Path) -> int:
    """Memory of a graph's weights in a session, where those of 8 bits are fp32."""
    import onnx

    weights = onnx.load(path, load_external_data=False).graph.initializer
    return sum(math.prod(weight.dims) for weight in weights) * np.dtype(np.float32).itemsize


def graph_numerics(path: Path, device: str = "cpu") -> str:
    """What the bytes depend on that a session of this graph computes: the library, the processor's vector instructions
    (the library picks its kernels by them) and the graph with its weights and their precision. ``any``: neither the
    other rows of the batch, nor its size, nor the number of threads."""
    place = processor() if device == "cpu" else torch.cuda.get_device_name()
    return f"onnxruntime-{onnxruntime.__version__}/{place}/{graph_digest(path)[:16]}/any"
