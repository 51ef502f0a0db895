"""A model folder's networks as engines: found in the cache, or made there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from engines.cache import EngineCache, EngineKey, sha256_of_files
from engines.export import ONNX_FILE, export
from engines.networks import Network, networks_of, runs_as_engine
from engines.plan import PLAN_FILE, PlanOptions, build_plan, load_tensorrt
from engines.precision import OPSET, Precision
from engines.quantise import calibrate, quantise
from engines.refit import refit_plan
from engines.session import OnnxSession
from engines.verdict import Sample
from models.weights import weight_files

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).resolve().parent.parent
_PARTS = ("", "adapters/", "checkpoints/", "spec/")
_WITHOUT_GRAPHS = (
    "background.py", "buckets.py", "cache.py", "life.py", "maker.py", "openvino_maker.py", "openvino_session.py",
    "plan.py", "plan_maker.py", "plan_session.py", "prepare.py", "quality.py", "refit.py", "refused.py",
    "trial.py",
)  # fmt: skip
_CODE = tuple(
    path.relative_to(_SOURCE).as_posix()
    for pattern in ("engines/*.py", "kernels/*.py", *(f"models/{part}*.py" for part in _PARTS))
    for path in sorted(_SOURCE.glob(pattern))
    if path.name not in _WITHOUT_GRAPHS
) + tuple(f"models/conditioners/{name}.py" for name in ("condition", "prompt", "text", "video"))
"""The code that decides what an exported graph holds, and some more: a rebuild too many costs half a minute, one too
few a wrong picture. Text and vision towers come from transformers beside it."""
_EXPORTERS = ("onnxruntime", "onnxscript", "torch", "transformers")


@dataclass(frozen=True)
class Engines:
    """One model's networks, each called like the torch module it replaces."""

    denoisers: Mapping[str, OnnxSession]
    """``unet``, or ``transformer`` and its variant: (x, c_noise, context, vector) -> output."""
    decoder: OnnxSession
    """:class:`models.vae.VAEDecoder`, latents -> pictures; or
    :class:`models.temporal_decoder.TemporalVAEDecoder`, clips of latents -> clips."""
    encoder: OnnxSession | None
    """:class:`engines.wrappers.VAEEncoder`: pictures -> mean and log-variance, one behind the other."""
    fast_decoder: OnnxSession | None = None
    """As ``decoder``, of ``vae_tiny``, where the folder has it."""

    @property
    def denoiser(self) -> OnnxSession:
        """The denoising network itself."""
        return next(iter(self.denoisers.values()))


def prepare(model_folder: Path, cache: EngineCache, threads: int) -> Engines:
    """The engines of a diffusers folder, ready to be called. Exports first what the cache lacks.

    Args:
        model_folder: a folder of any system that is served.
        cache: where exported networks are kept.
        threads: threads that one operation may use.

    Raises:
        ValueError: a file of the model is missing, or its weights do not fit its configs.
        RuntimeError: an exported network does not compute what torch does.
    """
    sessions = {name: OnnxSession(path, threads) for name, path in build(model_folder, cache).items()}
    return Engines(
        denoisers={name: session for name, session in sessions.items() if name.startswith(("unet", "transformer"))},
        decoder=sessions["vae/decoder"],
        encoder=sessions.get("vae/encoder"),
        fast_decoder=sessions.get("vae_tiny/decoder"),
    )


def build(model_folder: Path, cache: EngineCache, precision: Precision = "fp32") -> dict[str, Path]:
    """Make sure that the cache holds the networks that :func:`engines.networks.runs_as_engine`; errors as
    :func:`prepare`.

    Takes under a second when it does. Exporting takes about half a minute.

    Returns:
        The ONNX file of each, by the network's name.
    """
    networks = _served(model_folder)
    for network in networks:
        graph_key(network, precision)  # finds a file that is missing before half a minute of exports
    return {network.name: build_graph(network, cache, precision) for network in networks}


def find(model_folder: Path, cache: EngineCache) -> dict[str, Path]:
    """Those graphs of :func:`build` in fp32 that the cache holds, by the network's name.

    Raises:
        ValueError: a file of the model is missing.
    """
    found = {network.name: find_graph(network, cache) for network in _served(model_folder)}
    return {name: graph for name, graph in found.items() if graph is not None}


def _served(model_folder: Path) -> list[Network]:
    return [network for network in networks_of(model_folder).values() if runs_as_engine(network)]


def find_graph(network: Network, cache: EngineCache, precision: Precision = "fp32") -> Path | None:
    """The ONNX file of one network, in 8 bits where its card asks for them, if the cache holds it.

    Raises:
        ValueError: a file of the network is missing.
    """
    entry = cache.find(served_key(network, precision))
    return None if entry is None else entry / ONNX_FILE


def build_graph(network: Network, cache: EngineCache, precision: Precision = "fp32") -> Path:
    """The ONNX file of one network, exported first if the cache lacks it; errors as :func:`prepare`.

    A network whose activations overflow in fp16 stays in fp32 there.
    """

    def export_into(folder: Path) -> None:
        logger.info("exporting a network", extra={"network": network.name, "precision": precision})
        export(network.load(), network.signature, folder, network.precision(precision))

    return cache.get_or_build(graph_key(network, precision), export_into) / ONNX_FILE


def build_served(
    network: Network, cache: EngineCache, precision: Precision = "fp32", samples: Sequence[Sample] = ()
) -> Path:
    """As :func:`build_graph`, in 8 bits where the network's card asks for them.

    Args:
        network: to be built.
        cache: holds its graph, or gets it.
        precision: of what is not in 8 bits.
        samples: inputs that occurred, CPU tensors, for the scales of 8 bits. A graph that is there keeps its scales.

    Raises:
        ValueError: as :func:`prepare`.
        RuntimeError: as there, or there are no samples, and 8 bits need them.
    """
    kind = network.eight
    if kind is None:
        return build_graph(network, cache, precision)

    def quantise_into(folder: Path) -> None:
        if not samples:
            raise RuntimeError(f"{network.name} in {kind} needs inputs that occurred, for its scales")
        graph = build_graph(network, cache, precision)
        logger.info("quantising a network", extra={"network": network.name, "kind": kind})
        quantise(graph, folder, calibrate(graph, samples), kind)

    return cache.get_or_build(served_key(network, precision), quantise_into) / ONNX_FILE


def build_network_plan(
    network: Network,
    cache: EngineCache,
    precision: Precision,
    options: PlanOptions,
    samples: Sequence[Sample] = (),
    base: Path | None = None,
) -> Path:
    """The TensorRT plan of one network, built from its graph if the cache lacks it.

    Args:
        network: to be built.
        cache: holds its plan, or gets it.
        precision: of its graph.
        options: what the plan is for.
        samples: as for :func:`build_served`.
        base: a refittable plan of the same network without adapters, for these options, whose weights are exchanged
            in place of a build.

    Raises:
        ValueError: as :func:`prepare`, or as :func:`engines.plan.build_plan`.
        RuntimeError: TensorRT cannot build it, or as :func:`build_served`.
    """

    def build_into(folder: Path) -> None:
        graph = build_served(network, cache, precision, samples)
        logger.info("building a plan", extra={"network": network.name, "flavour": options.flavour})
        if base is not None:
            refit_plan(base, graph, folder)
        else:
            build_plan(graph, options, folder, cache.beside(_timing_file(options)))

    return cache.get_or_build(plan_key(network, precision, options), build_into) / PLAN_FILE


def find_plan(network: Network, cache: EngineCache, precision: Precision, options: PlanOptions) -> Path | None:
    """The plan of one network that was used last, of those in the cache that differ from ``options`` in their buckets
    alone; errors as :func:`plan_key`."""
    wanted = plan_key(network, precision, options)
    for entry in reversed(cache.entries()):
        if entry.key is not None and replace(entry.key, shapes=wanted.shapes) == wanted:
            found = cache.find(entry.key)
            if found is not None:
                return found / PLAN_FILE
    return None


def graph_key(network: Network, precision: Precision = "fp32") -> EngineKey:
    """What an exported graph depends on.

    Raises:
        ValueError: a file of the network is missing.
    """
    exact = network.precision(precision)
    return EngineKey(
        network=network.name,
        weights=sha256_of_files(_files(network)),
        precision=exact,
        format=f"onnx-{OPSET[exact]}",
        libraries=" ".join(f"{name}-{version(name)}" for name in _EXPORTERS),
        code=sha256_of_files([_SOURCE / name for name in _CODE]),
        adapters=network.adapters,
    )


def served_key(network: Network, precision: Precision = "fp32") -> EngineKey:
    """What the graph depends on that serves, but for the inputs that scales of 8 bits came from: a graph with others
    does the same work. Errors as :func:`graph_key`."""
    key = graph_key(network, precision)
    return key if network.eight is None else replace(key, precision=f"{network.eight} in {key.precision}")


def plan_key(network: Network, precision: Precision, options: PlanOptions) -> EngineKey:
    """What a plan depends on: its graph and what TensorRT was asked for; mainline's also on the GPU of this machine.

    Raises:
        ValueError: a file of the network is missing, or this flavour of TensorRT is not installed.
    """
    key = served_key(network, precision)
    flags = [name for name in ("weight_streaming", "refittable") if getattr(options, name)]
    sizes = ("+".join(f"{name}{size}" for name, size in sorted(bucket.items())) for bucket in options.buckets)
    return replace(
        key,
        shapes=" ".join(sizes),
        format=" ".join([key.format, options.flavour, *flags]),
        libraries=f"{key.libraries} {options.flavour}-{load_tensorrt(options.flavour).__version__}",
        architecture=" ".join(options.architectures) or _own_architecture(options),
    )


def weights_digest(model_folder: Path, networks: Sequence[str] = ("unet", "vae")) -> str:
    """Hash of the weights and configs of the networks in these subfolders.

    Raises:
        ValueError: a file is missing.
    """
    folders = [model_folder / network for network in networks]
    return sha256_of_files([file for folder in folders for file in (_config(folder), *weight_files(folder))])


def _files(network: Network) -> list[Path]:
    """Config and weights; of a tower all that its folder and its tokenizer's say."""
    config = _config(network.folder)
    weights = weight_files(network.folder)
    if not network.is_tower:
        return [config, *weights]
    tokenizer = network.folder.with_name(network.folder.name.replace("text_encoder", "tokenizer"))
    return [config, *weights, *sorted(tokenizer.glob("tokenizer_config.json"))]


def _config(folder: Path) -> Path:
    config = folder / "config.json"
    if not config.exists():
        raise ValueError(f"{config} is missing")
    return config


def _timing_file(options: PlanOptions) -> str:
    place = _own_architecture(options).replace(" ", "-").replace("/", "-")
    return f"{options.flavour}-{load_tensorrt(options.flavour).__version__}-{place}.timing"


def _own_architecture(options: PlanOptions) -> str:
    if options.flavour == "tensorrt-rtx":
        return "default"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
