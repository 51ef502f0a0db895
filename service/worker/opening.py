"""Opens models: what a folder holds, how its networks run, and where they come from when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from engines.cache import EngineCache, sha256_of_files
from engines.prepare import build, weights_digest
from engines.session import OnnxSession
from models.conditioners.video import SVDConditioner
from models.families import image_to_video, text_to_image
from models.families.image_to_video import ImageToVideoModel
from models.families.row import Denoiser
from models.families.text_to_image import Decoder, TextConditioner, TextToImageModel, moments_of
from models.spec.model import ModelSpec
from models.spec.unet import read_unet_spec
from models.spec.vae import read_temporal_vae_spec, read_vae_spec
from models.weights import load_temporal_vae, load_tiny_decoder, load_unet, load_vae
from service.settings import Settings
from service.worker.lazy import LazyConditioner, LazyDenoisers, LazyNetwork, fp32_bytes
from service.worker.numerics import Numerics, network_id, numerics_id
from service.worker.residency import LoadedModel, Role

T = TypeVar("T")

MAX_LANES = 16
STRICT_LANES = 8
"""Torch's CPU kernels choose their order of summation by the batch size: only a constant one gives constant bytes."""
STRICT_CLIP_LANES = 2
"""Those of one guided clip, which fills the device alone."""

EXPORTABLE = ("StableDiffusionXLPipeline",)
"""Pipelines whose networks become engines; the others run on torch."""

CONDITIONER_FOLDERS = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")
"""What the names of the folders begin with that a conditioner is read from."""


@dataclass(frozen=True)
class _Parts:
    """A model's networks on one back end, and what calls them."""

    networks: dict[Role, LazyNetwork[Any]]
    decode: Decoder
    """Latents to pictures; of clips one chunk."""
    moments: Callable[[Tensor], Tensor]
    """Pictures to mean and log-variance of their latents, one behind the other."""
    strict: Numerics
    fast: Numerics


def load_model(spec: ModelSpec, settings: Settings) -> LoadedModel:
    """Open a model on the configured back end; with ONNX Runtime, export what the engine cache lacks. Networks on torch
    are read when they are first used, or before by whoever holds the model.

    Raises:
        ValueError: a file of the model is missing, or cannot be what its name says.
        RuntimeError: an exported network does not compute what torch does.
    """
    on_engines = settings.backend == "onnxruntime" and spec.pipeline in EXPORTABLE and spec.refiner is None
    parts = _engines(spec, settings) if on_engines else _modules(spec)
    parts.networks["conditioner"] = _conditioner(spec)
    model = _clips(spec, parts) if spec.system.task == "image-to-video" else _pictures(spec, parts)
    return LoadedModel(model, parts.strict, parts.fast, parts.networks)


def _pictures(spec: ModelSpec, parts: _Parts) -> TextToImageModel:
    fast = parts.networks.get("fast decoder")
    return text_to_image.load_with(
        spec.folder,
        LazyDenoisers(parts.networks["denoiser"]),
        parts.decode,
        text_to_image.encoder_of(read_vae_spec(spec.folder), parts.moments),
        cast(TextConditioner, LazyConditioner(parts.networks["conditioner"])),
        None if fast is None else _call(fast),
    )


def _clips(spec: ModelSpec, parts: _Parts) -> ImageToVideoModel:
    vae = read_temporal_vae_spec(spec.folder)
    return image_to_video.load_with(
        spec.folder,
        cast(SVDConditioner, LazyConditioner(parts.networks["conditioner"])),
        LazyDenoisers(parts.networks["denoiser"]),
        image_to_video.decoder_of(vae, parts.decode),
        image_to_video.encoder_of(vae, parts.moments),
    )


def _modules(spec: ModelSpec) -> _Parts:
    """Everything on torch. Encoder and decoder are one network, which is read whole."""
    folder, clips = spec.folder, spec.system.task == "image-to-video"
    networks: dict[Role, LazyNetwork[Any]] = {}
    vae: LazyNetwork[Any]
    if clips:
        networks["denoiser"] = _module(folder, "unet", lambda: {"unet": load_unet(folder)})
        vae = _module(folder, "vae", lambda: load_temporal_vae(folder))
    else:
        networks["denoiser"] = _denoisers(spec)
        vae = _module(folder, "vae", lambda: load_vae(folder))
    networks |= {"decoder": vae, "encoder": vae}
    if (folder / "vae_tiny").is_dir():
        networks["fast decoder"] = _module(folder, "vae_tiny", lambda: load_tiny_decoder(folder / "vae_tiny").decode)

    def decode(latents: Tensor) -> Tensor:
        return vae.get().decode_chunk(latents) if clips else vae.get().decode(latents)

    lanes = STRICT_CLIP_LANES if clips else STRICT_LANES
    parts = {
        "backend": "torch",
        **_torch(),
        "precision": "fp32",
        "weights": weights_digest(folder, (spec.system.denoiser, "vae")),
        "rest": _rest_digest(spec),
    }
    strict = Numerics(numerics_id({**parts, "invariance": f"fixed-{lanes}"}), lanes, lanes, lone_decode=True)
    fast = Numerics(numerics_id({**parts, "invariance": "fast"}), 0, MAX_LANES, lone_decode=False)
    return _Parts(networks, decode, lambda pictures: moments_of(vae.get(), pictures), strict, fast)


def _engines(spec: ModelSpec, settings: Settings) -> _Parts:
    """Everything but the conditioner on ONNX Runtime."""
    paths = build(spec.folder, EngineCache(settings.engines_path))
    sessions = {name: OnnxSession(path, settings.threads) for name, path in paths.items()}

    def again(name: str) -> OnnxSession:
        return OnnxSession(paths[name], settings.threads)

    def engine(names: Sequence[str], of: Callable[[Callable[[str], OnnxSession]], T], at_once: bool) -> LazyNetwork[T]:
        numerics = " ".join(sessions[name].numerics for name in names)
        files = [file for name in names for file in paths[name].parent.glob(f"{paths[name].name}*")]
        size, loaded = sum(file.stat().st_size for file in files), of(sessions.__getitem__) if at_once else None
        return LazyNetwork(network_id(names[0], numerics, "onnxruntime"), size, lambda: of(again), loaded)

    lines = [name for name in paths if not name.startswith("vae")]
    decoder = engine(["vae/decoder"], lambda session: session("vae/decoder"), at_once=True)
    encoder = engine(["vae/encoder"], lambda session: session("vae/encoder"), at_once=False)
    networks: dict[Role, LazyNetwork[Any]] = {
        "denoiser": engine(lines, lambda session: {name: session(name) for name in lines}, at_once=True),
        "decoder": decoder,
        "encoder": encoder,
    }
    if (small := "vae_tiny/decoder") in paths:
        networks["fast decoder"] = engine([small], lambda session: session(small), at_once=False)
    parts = {"backend": "onnxruntime", **_torch(), "rest": _rest_digest(spec)}
    parts |= {name: session.numerics for name, session in sessions.items()}
    numerics = Numerics(numerics_id(parts), padded_lanes=0, max_lanes=MAX_LANES, lone_decode=False)
    return _Parts(networks, _call(decoder), _call(encoder), numerics, numerics)


def _conditioner(spec: ModelSpec) -> LazyNetwork[Any]:
    """A model's text towers or vision tower, which run on torch."""
    folder, clips = spec.folder, spec.system.task == "image-to-video"
    options = [spec.pipeline, str(spec.zeros_for_empty_prompt)]
    if spec.system.denoiser == "unet":
        unet = read_unet_spec(folder)
        options += [str(unet.time_id_dim), str(unet.vector_dim)]
    identity = network_id("conditioner", _digest(folder, CONDITIONER_FOLDERS) + "/".join(options), str(_torch()))
    load = (lambda: image_to_video.load_conditioner(folder)) if clips else lambda: text_to_image.load_conditioner(spec)
    towers = [path for part in folder.iterdir() if "encoder" in part.name for path in part.glob("*.safetensors")]
    return LazyNetwork(identity, fp32_bytes(towers), load)


def _call(network: LazyNetwork[Any]) -> Callable[[Tensor], Tensor]:
    return lambda given: network.get()(given)


def _denoisers(spec: ModelSpec) -> LazyNetwork[Mapping[str, Denoiser]]:
    """The denoiser with its variants, and with the refiner that takes over from it: a row that begins needs both."""
    folders = [spec.folder, *([] if spec.refiner is None else [spec.refiner])]
    part = spec.system.denoiser
    weights = " ".join(weights_digest(folder, (part,)) for folder in folders)
    size = fp32_bytes(file for folder in folders for file in (folder / part).glob("*.safetensors"))
    return LazyNetwork(
        network_id(part, weights, str(_torch())), size, lambda: text_to_image.load_denoisers(spec.folder)
    )


def _module(folder: Path, part: str, load: Callable[[], T]) -> LazyNetwork[T]:
    identity = network_id(part, weights_digest(folder, (part,)), str(_torch()))
    return LazyNetwork(identity, fp32_bytes((folder / part).glob("*.safetensors")), load)


def _torch() -> dict[str, str]:
    """What the bytes of every torch network depend on beside its weights."""
    return {"torch": torch.__version__, "device": f"cpu/{torch.backends.cpu.get_cpu_capability()}"}


def _rest_digest(spec: ModelSpec) -> str:
    """Hash of what the digest of the base's networks does not cover: conditioner, small decoder, the tables made from
    the schedule, and the refiner."""
    rest = _digest(spec.folder, ("scheduler", "vae_tiny", *CONDITIONER_FOLDERS))
    if spec.refiner is None:
        return rest
    refiner = [weights_digest(spec.refiner, ("unet",)), _digest(spec.refiner, CONDITIONER_FOLDERS)]
    return " ".join([rest, *refiner, str(spec.refiner_at)])


def _digest(folder: Path, parts: tuple[str, ...]) -> str:
    """Hash of the files in the subfolders whose names begin so."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.startswith(parts)]
    return sha256_of_files([path for part in folders for path in sorted(part.iterdir())])
