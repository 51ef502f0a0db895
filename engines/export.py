"""Networks to ONNX.

One file serves every batch size, picture size and prompt length: measured on ONNX Runtime, symbolic dimensions cost no
time and change no bytes against a graph of fixed shape. A file is only left behind when it computes what torch does.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from engines.session import OnnxSession
from models.unet import UNet
from models.vae import VAE, VAEDecoder

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20
"""The first opset with a Gelu of its own, which ONNX Runtime runs as one kernel."""
TOLERANCE = 1e-4
"""Largest accepted difference to torch, relative to the largest output. Sound exports are near 1e-6."""
Shapes = dict[str, tuple[int, ...]]


def export_unet(unet: UNet, path: Path) -> None:
    """Write ``unet`` as ONNX: inputs x, c_noise, context, vector; output ``output``. Weights over 2 GB go to a file
    beside ``path``.

    Height and width must be multiples of 2^(levels - 1), as for the network itself.

    Raises:
        RuntimeError: the exported graph does not compute what torch does.
    """
    factor = 2 ** (len(unet.spec.block_out_channels) - 1)
    height, width = (_multiple(factor, name) for name in ("height", "width"))
    batch = Dim("batch", min=1)
    dynamic = {
        "x": {0: batch, 2: height, 3: width},
        "c_noise": {0: batch},
        "context": {0: batch, 1: Dim("tokens", min=1)},
        "vector": {0: batch},
    }

    def shapes(lanes: int, rows: int, columns: int, tokens: int) -> Shapes:
        return {
            "x": (lanes, unet.spec.in_channels, rows * factor, columns * factor),
            "c_noise": (lanes,),
            "context": (lanes, tokens, unet.spec.context_dim),
            "vector": (lanes, unet.spec.vector_dim),
        }

    # Traced at sizes that all differ, so that no two of them can be taken for one symbol; checked at others, the
    # smallest among them, so that a size that the tracing froze shows.
    _export(unet, dynamic, shapes(3, 4, 2, 5), path)
    _check(unet, path, [shapes(1, 1, 2, 7), shapes(5, 3, 3, 32)])


def export_decoder(vae: VAE, path: Path) -> None:
    """Write the decoding half of ``vae`` as ONNX: input ``latents``, output ``output``; as :func:`export_unet`.

    Raises:
        RuntimeError: the exported graph does not compute what torch does.
    """
    decoder = VAEDecoder(vae).eval()
    dynamic = {"latents": {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}}

    def shapes(lanes: int, rows: int, columns: int) -> Shapes:
        return {"latents": (lanes, vae.spec.latent_channels, rows, columns)}

    _export(decoder, dynamic, shapes(3, 4, 2), path)
    _check(decoder, path, [shapes(1, 1, 2), shapes(5, 3, 3)])


def _multiple(factor: int, name: str) -> Dim:
    dim = Dim(name, min=1)
    return factor * dim if factor > 1 else dim


def _export(network: nn.Module, dynamic: dict[str, Any], shapes: Shapes, path: Path) -> None:
    import onnx
    import onnxscript  # noqa: F401  # the exporter needs it: a clear ImportError now, not one from deep inside

    with _quiet(), torch.no_grad():
        program = torch.export.export(network, tuple(_example(shapes).values()), dynamic_shapes=dynamic, strict=False)
        exported = torch.onnx.export(
            program,
            (),
            input_names=list(dynamic),
            output_names=["output"],
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    if exported is None:
        raise RuntimeError("the ONNX exporter returned nothing. This is a bug.")
    _strip(exported.model)
    exported.save(path)
    # By path, not by content: a graph with weights beside it can only be checked where it lies. Infers shapes too.
    onnx.checker.check_model(str(path), full_check=True)


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


def _check(network: nn.Module, path: Path, cases: list[Shapes]) -> None:
    session = OnnxSession(path, threads=1)
    for shapes in cases:
        inputs = _example(shapes).values()
        with torch.no_grad():
            expected = network(*inputs)
        error = ((session(*inputs) - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
        if not error <= TOLERANCE:  # also when it is not a number
            raise RuntimeError(
                f"{path}: at {shapes} the largest error against torch is {error:.1e} of the largest output"
            )
        _check_rows(session, path, list(inputs))


def _check_rows(session: OnnxSession, path: Path, inputs: list[Tensor]) -> None:
    """The promise in the session's ``numerics``: a row alone has the bytes that it has in the batch."""
    batch = session(*inputs)
    for i, row in enumerate(batch):
        if not torch.equal(session(*(tensor[i : i + 1] for tensor in inputs))[0], row):
            raise RuntimeError(f"{path}: row {i} of {len(batch)} has other bytes than the same row alone")


def _example(shapes: Shapes) -> dict[str, Tensor]:
    # A generator of its own: exporting must not move the caller's random numbers.
    generator = torch.Generator().manual_seed(0)
    example = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "c_noise" in example:
        example["c_noise"] = torch.rand(shapes["c_noise"], generator=generator) * 999.0
    return example


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
