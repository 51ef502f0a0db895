"""OpenVINO behind a network's own call, on the processor: torch tensors in, torch tensors out, no copies between.

It is an extra, ``pip install 'darkroom[openvino]'``, and imported when it is first asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engines.call import Bound, Output, bind, graph_digest, processor
from engines.signature import Signature

BLOB_FILE, DIGEST_FILE = "network.blob", "graph.sha256"
_CPU = torch.device("cpu")


class OpenVinoSession:
    """A network on OpenVINO's CPU plugin, called like the torch module that it was exported from.

    May be called from any thread, from several at once too.
    """

    def __init__(self, path: Path, threads: int) -> None:
        """Open a graph that :func:`compile_graph` compiled, in tenths of a second, or compile one for this session
        alone, in up to a second.

        Args:
            path: a compiled graph, or an .onnx file, its signature beside it.
            threads: threads that one operation may use. They do not change the result.

        Raises:
            ValueError: the file has no signature, or OpenVINO is not installed.
            RuntimeError: OpenVINO refuses it: a damaged file, or compiled by another version or for another processor.
        """
        openvino = load_openvino()
        self.signature = Signature.read(path.parent)
        self._model, self._tensor = _opened(openvino, path, threads), openvino.Tensor
        self.numerics = openvino_numerics(path)
        """What the output's bytes depend on."""

    def __call__(self, *inputs: Tensor) -> Output:
        """One evaluation.

        Args:
            inputs: CPU tensors, shaped and typed as for the network, fp32 for every real one.

        Returns:
            New tensors, fp32: one, or a tuple where the network has several outputs.

        Raises:
            TypeError: not tensors, of another dtype, or not as many as the network takes.
            ValueError: on another device, or of a shape that the network does not take.
            RuntimeError: OpenVINO failed.
        """
        bound = bind(self.signature, inputs, _CPU)
        self._run(bound)
        return bound.result

    def _run(self, bound: Bound) -> None:
        request = self._model.create_infer_request()  # takes 20 us, and belongs to this call alone
        for port, tensor in (*bound.inputs, *bound.outputs):
            request.set_tensor(port.name, self._tensor(tensor.detach().numpy(), shared_memory=True))
        request.infer()


def compile_graph(graph: Path, folder: Path) -> Path:
    """Compile an exported graph for this processor, so that sessions open it four times as fast.

    Args:
        graph: an .onnx file, its signature beside it.
        folder: an empty one.

    Returns:
        The file to open, and beside it what it needs. Its bytes are others each time; its numerics name the graph.

    Raises:
        ValueError: OpenVINO is not installed.
        RuntimeError: OpenVINO cannot compile the graph.
    """
    compiled = folder / BLOB_FILE
    compiled.write_bytes(_opened(load_openvino(), graph, threads=1).export_model().getbuffer())
    (folder / DIGEST_FILE).write_text(graph_digest(graph), encoding="ascii")
    Signature.read(graph.parent).write(folder)
    return compiled


def openvino_numerics(path: Path) -> str:
    """What the bytes depend on that a session of this graph computes, compiled or not: the library, the processor's
    vector instructions and the graph with its weights. ``any``: neither the other rows of the batch, nor its size, nor
    the number of threads.

    Raises:
        ValueError: OpenVINO is not installed.
    """
    compiled = path.name == BLOB_FILE
    digest = path.with_name(DIGEST_FILE).read_text(encoding="ascii") if compiled else graph_digest(path)
    return f"openvino-{openvino_version()}/{processor()}/{digest[:16]}/any"


def openvino_version() -> str:
    """The version of OpenVINO that is installed; known without importing it.

    Raises:
        ValueError: none is.
    """
    try:
        return version("openvino")
    except PackageNotFoundError as error:
        raise ValueError("OpenVINO is not installed: pip install 'darkroom[openvino]'") from error


def load_openvino() -> ModuleType:
    """The library.

    Raises:
        ValueError: it is not installed.
    """
    openvino_version()
    # The import reports itself to the library's makers over the network, unless the package that does it is not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's mark of what is not there
    import openvino

    return openvino


def _opened(openvino: ModuleType, path: Path, threads: int) -> Any:
    options: Mapping[str, Any] = {
        # On processors that have it, bf16 is what OpenVINO takes by itself.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Cores are shared with the threads of torch, the API and the encoders of pictures.
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    if path.name == BLOB_FILE:
        return core.import_model(path.read_bytes(), "CPU", options)
    return core.compile_model(str(path), "CPU", options)
