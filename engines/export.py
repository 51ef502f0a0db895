"""Networks to ONNX.

One file serves every batch size, picture size and prompt length: measured on ONNX Runtime, symbolic dimensions cost no
time and change no bytes against a graph of fixed shape. A file is only left behind when it computes what torch does.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export import Dim

from engines.call import examples
from engines.precision import EXTERNAL_BYTES, OPSET, TORCH_DTYPE, Precision, keep_in_fp32
from engines.rewrite import rewrite_for_onnxruntime
from engines.signature import Axis, Port, Signature
from engines.verify import check_graph, expected_outputs
from engines.wrappers import AsGraph

if TYPE_CHECKING:
    import onnx_ir as ir

ONNX_FILE = "network.onnx"
COLLECT_EVERY = 1_000_000
"""Objects between two runs of the garbage collector while a network is traced. Its graph is of as many small objects,
all of them alive to the end; at the usual 700, going through them again and again takes a sixth of the time."""
TRACED = {"batch": 3, "height": 4, "width": 2, "tokens": 5, "frames": 6}
"""Sizes that all differ, so that no two symbols can be taken for one."""


def export(
    network: nn.Module, signature: Signature, folder: Path, precision: Precision = "fp32",
    external_bytes: int = EXTERNAL_BYTES,
) -> Path:  # fmt: skip
    """Write ``network`` as ``network.onnx`` with its signature beside it, and compare it with torch.

    Args:
        network: in fp32 and evaluation mode. It is left in the precision of the graph.
        signature: the network's call, which becomes the graph's.
        folder: an existing folder. Nothing else of these names may be in it.
        precision: of weights and arithmetic. Inputs and outputs are fp32 in each, and norms, softmaxes and the
            embedding of the time are computed in fp32.
        external_bytes: weights of more bytes than this go to ``network.onnx.data``.

    Returns:
        The path of the graph.

    Raises:
        RuntimeError: the exported graph does not compute what torch does.
    """
    expected = expected_outputs(network, signature)
    path = folder / ONNX_FILE
    signature.write(folder)
    _export(network.to(TORCH_DTYPE[precision]), signature, path, precision, external_bytes)
    check_graph(path, signature, expected, precision)
    return path


def _export(network: nn.Module, signature: Signature, path: Path, precision: Precision, external_bytes: int) -> None:
    import onnxscript  # noqa: F401  # the exporter needs it: a clear ImportError now, not one from deep inside

    ports, dims = signature.graph_inputs, _dims(signature)
    given = examples(signature, {symbol: TRACED[symbol] for symbol in signature.symbols})
    inputs = tuple(tensor for port, tensor in zip(signature.inputs, given, strict=True) if not port.empty)
    dynamic = tuple(_dynamic(port, dims) for port in ports)
    with _quiet(), _collecting_rarely(), torch.no_grad():
        graph = AsGraph(network, signature).eval()
        program = torch.export.export(graph, inputs, dynamic_shapes=(dynamic,), strict=False)
        exported = torch.onnx.export(
            program,
            (),
            input_names=[port.name for port in ports],
            output_names=[port.name for port in signature.outputs],
            opset_version=OPSET[precision],
            dynamic_shapes=dict(zip((port.name for port in ports), dynamic, strict=True)),
            dynamo=True,
            verbose=False,
        )
    if exported is None:
        raise RuntimeError("the ONNX exporter returned nothing. This is a bug.")
    if precision == "fp32":
        rewrite_for_onnxruntime(exported.model)
    _strip(exported.model)
    keep_in_fp32(exported.model)
    size = sum(value.const_value.nbytes for value in exported.model.graph.initializers.values() if value.const_value)
    exported.save(path, external_data=size > external_bytes)


def _dims(signature: Signature) -> dict[str, Dim]:
    return {name: Dim(name, min=1, max=signature.largest.get(name)) for name in signature.symbols}


def _dynamic(port: Port, dims: dict[str, Dim]) -> dict[int, Any]:
    def dim(axis: Axis) -> Any:
        return dims[axis.symbol] if axis.factor == 1 else axis.factor * dims[axis.symbol]

    return {i: dim(axis) for i, axis in enumerate(port.axes) if axis.symbol}


def _strip(model: ir.Model) -> None:
    """Remove what the exporter noted about its source: stack traces hold the paths of this machine, and equal networks
    shall give equal files."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on optional packages, axis names and its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
