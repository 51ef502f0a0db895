"""A model folder's networks as engines: found in the cache, or exported into it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from engines.cache import EngineCache, EngineKey, sha256_of_files
from engines.export import OPSET, export_decoder, export_unet
from engines.session import OnnxSession
from models.weights import load_unet, load_vae, weight_files

logger = logging.getLogger(__name__)

ONNX_FILE = "network.onnx"
_SOURCE = Path(__file__).resolve().parent.parent
_EXPORTER_FILES = (
    "engines/export.py",
    "models/weights.py",
    *(f"models/{name}.py" for name in ("unet", "unet_blocks", "vae", "blocks", "video_blocks")),
    *(f"models/spec/{name}.py" for name in ("config", "unet", "vae")),
    *sorted(f"kernels/{path.name}" for path in (_SOURCE / "kernels").glob("*.py")),
)
"""The code that decides what an exported graph holds."""


@dataclass(frozen=True)
class Engines:
    """One model's networks, each called like the torch module it replaces."""

    denoiser: OnnxSession
    """:class:`models.unet.UNet`: (x, c_noise, context, vector) -> output."""
    decoder: OnnxSession
    """:class:`models.vae.VAEDecoder`: latents -> pictures."""


def prepare(model_folder: Path, cache: EngineCache, threads: int) -> Engines:
    """The engines of a diffusers folder, ready to be called. Exports first what the cache lacks.

    Args:
        model_folder: the folder that holds ``unet`` and ``vae``.
        cache: where exported networks are kept.
        threads: threads that one operation may use.

    Raises:
        ValueError: a file of the model is missing, or its weights do not fit its configs.
        RuntimeError: an exported network does not compute what torch does.
    """
    unet, decoder = build(model_folder, cache)
    return Engines(OnnxSession(unet, threads), OnnxSession(decoder, threads))


def build(model_folder: Path, cache: EngineCache) -> tuple[Path, Path]:
    """Make sure that the cache holds the model's networks; errors as :func:`prepare`.

    Takes under a second when it does. Exporting takes about half a minute.

    Returns:
        The ONNX files of the UNet and of the decoder.
    """

    def unet(folder: Path) -> None:
        logger.info("exporting the UNet", extra={"model": model_folder.name})
        export_unet(load_unet(model_folder), folder / ONNX_FILE)

    def decoder(folder: Path) -> None:
        logger.info("exporting the decoder", extra={"model": model_folder.name})
        export_decoder(load_vae(model_folder), folder / ONNX_FILE)

    return (
        cache.get_or_build(_key("unet", model_folder / "unet"), unet) / ONNX_FILE,
        cache.get_or_build(_key("decoder", model_folder / "vae"), decoder) / ONNX_FILE,
    )


def weights_digest(model_folder: Path, networks: Sequence[str] = ("unet", "vae")) -> str:
    """Hash of the weights and configs of the networks in these subfolders.

    Raises:
        ValueError: a file is missing.
    """
    return sha256_of_files([file for network in networks for file in _network_files(model_folder / network)])


def _network_files(folder: Path) -> list[Path]:
    config = folder / "config.json"
    if not config.exists():
        raise ValueError(f"{config} is missing")
    return [config, *weight_files(folder)]


def _key(network: str, folder: Path) -> EngineKey:
    return EngineKey(
        network=network,
        weights=sha256_of_files(_network_files(folder)),
        opset=OPSET,
        torch=version("torch"),
        onnxscript=version("onnxscript"),
        onnxruntime=version("onnxruntime"),
        precision="fp32",
        shapes="any",
        exporter=sha256_of_files([_SOURCE / name for name in _EXPORTER_FILES]),
    )
