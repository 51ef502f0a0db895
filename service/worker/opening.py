"""Opens models: what a folder holds, how its networks run, and where they come from when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from engines.cache import sha256_of_files
from engines.life import EngineLife
from engines.networks import networks_of
from engines.prepare import weights_digest
from engines.session import OnnxSession, graph_numerics
from models.checkpoints.stored import stored_numbers, weight_files
from models.conditioners.video import SVDConditioner
from models.families import image_to_video, text_to_image
from models.families.image_to_video import ImageToVideoModel
from models.families.row import Denoiser
from models.families.text_to_image import Decoder, TextConditioner, TextToImageModel, moments_of
from models.spec.model import ModelSpec
from models.spec.unet import read_unet_spec
from models.spec.vae import read_temporal_vae_spec, read_vae_spec
from models.weights import load_temporal_vae, load_tiny_decoder, load_vae
from service.settings import Settings
from service.worker.lazy import LazyConditioner, LazyDenoisers, LazyNetwork
from service.worker.numerics import Numerics, network_id, numerics_id
from service.worker.parking import modules_of
from service.worker.placement import Placement, placement
from service.worker.residency import LoadedModel, Role
from service.worker.upgrades import engine_life

T = TypeVar("T")

MAX_LANES = 16
STRICT_LANES = 8
"""Libraries of matrix products and convolutions choose their order of summation by the batch size: only a constant one
gives constant bytes."""
STRICT_LARGE_LANES = 2
"""Those of one guided clip, or of one guided picture of a megapixel on a GPU, which fills the device alone."""
MEGAPIXEL = 2**20

CONDITIONER_FOLDERS = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")
"""What the names of the folders begin with that a conditioner is read from."""


@dataclass(frozen=True)
class _Parts:
    """A model's networks on one back end, and what calls them."""

    networks: dict[Role, LazyNetwork[Any]]
    denoisers: Mapping[str, Denoiser]
    decode: Decoder
    """Latents to pictures; of clips one chunk."""
    moments: Callable[[Tensor], Tensor]
    """Pictures to mean and log-variance of their latents, one behind the other."""
    fast_decode: Decoder | None
    """As ``decode``, by the small decoder where the model has one."""
    strict: Numerics
    fast: Numerics


def load_model(
    spec: ModelSpec, settings: Settings, place: Placement | None = None, engines: EngineLife | None = None
) -> LoadedModel:
    """Open a model on the configured back end. Networks on torch are read when they are first used, or before by
    whoever holds the model.

    Args:
        spec: of the model.
        settings: of the installation.
        place: where its networks run; where the settings say, if not given.
        engines: the model's; those that the settings say, made first where the model is to wait for them, if not given.

    Raises:
        ValueError: a file of the model is missing, or cannot be what its name says.
    """
    place = place or placement(settings)
    life = engine_life(spec, settings, place) if engines is None else engines
    parts = _modules(spec, place)
    if life.states:
        parts = _with_engines(parts, spec, settings, life)
    parts.networks["conditioner"] = _conditioner(spec, place)
    clips = spec.system.task == "image-to-video"
    model = _clips(spec, parts, place) if clips else _pictures(spec, parts, place)
    graphs = settings.graphs and place.device.type == "cuda"
    return LoadedModel(model, parts.strict, parts.fast, parts.networks, graphs)


def _pictures(spec: ModelSpec, parts: _Parts, place: Placement) -> TextToImageModel:
    return text_to_image.load_with(
        spec.folder,
        parts.denoisers,
        parts.decode,
        text_to_image.encoder_of(read_vae_spec(spec.folder), parts.moments),
        cast(TextConditioner, LazyConditioner(parts.networks["conditioner"])),
        parts.fast_decode,
        place.dtype,
        place.device,
    )


def _clips(spec: ModelSpec, parts: _Parts, place: Placement) -> ImageToVideoModel:
    vae = read_temporal_vae_spec(spec.folder)
    return image_to_video.load_with(
        spec.folder,
        cast(SVDConditioner, LazyConditioner(parts.networks["conditioner"])),
        parts.denoisers,
        image_to_video.decoder_of(vae, parts.decode),
        image_to_video.encoder_of(vae, parts.moments),
        place.device,
    )


def _modules(spec: ModelSpec, place: Placement) -> _Parts:
    """Everything on torch. Encoder and decoder are one network, which is read whole."""
    folder, clips = spec.folder, spec.system.task == "image-to-video"
    load = load_temporal_vae if clips else load_vae
    autoencoder = read_temporal_vae_spec(folder) if clips else read_vae_spec(folder)
    dtype = place.dtype_of(autoencoder.force_upcast)
    vae: LazyNetwork[Any] = _module(folder, "vae", place, dtype, lambda: load(folder, dtype, device=place.device))
    denoisers = _denoisers(spec, place)
    networks: dict[Role, LazyNetwork[Any]] = {"denoiser": denoisers, "decoder": vae, "encoder": vae}
    if (tiny := folder / "vae_tiny").is_dir():
        networks["fast decoder"] = _module(
            folder, "vae_tiny", place, place.dtype, lambda: load_tiny_decoder(tiny, place.dtype, place.device).decode
        )

    def decode(latents: Tensor) -> Tensor:
        return vae.get().decode_chunk(latents) if clips else vae.get().decode(latents)

    lanes = strict_lanes(spec, place)
    parts = {
        "backend": "torch",
        **place.runs_on,
        "precision": place.precision,
        "weights": weights_digest(folder, (spec.system.denoiser, "vae")),
        "rest": _rest_digest(spec),
    }
    strict = Numerics(numerics_id({**parts, "invariance": f"fixed-{lanes}"}), lanes, lanes, lone_decode=True)
    fast = Numerics(numerics_id({**parts, "invariance": "fast"}), 0, MAX_LANES, lone_decode=False)

    def moments(pictures: Tensor) -> Tensor:
        return moments_of(vae.get(), pictures)

    fast_decode = _call(networks["fast decoder"]) if "fast decoder" in networks else None
    return _Parts(networks, LazyDenoisers(denoisers), decode, moments, fast_decode, strict, fast)


def strict_lanes(spec: ModelSpec, place: Placement) -> int:
    """Lanes of every batch of rows whose bytes are to be their own: as many as fill the device without making one row
    wait for many."""
    large = place.on_gpu and max(width * height for width, height in spec.sizes) >= MEGAPIXEL
    return STRICT_LARGE_LANES if large or spec.system.task == "image-to-video" else STRICT_LANES


def _with_engines(on_torch: _Parts, spec: ModelSpec, settings: Settings, life: EngineLife) -> _Parts:
    """The same on the engines that there are; a denoiser needs those of all its variants."""
    paths = life.paths
    variants = [name for name in networks_of(spec.folder) if name.partition("/")[0] == spec.system.denoiser]
    if set(variants) - set(paths):
        paths = {name: path for name, path in paths.items() if name not in variants}

    def engine(names: Sequence[str], load: Callable[[], T]) -> LazyNetwork[T]:
        files = [file for name in names for file in paths[name].parent.glob(f"{paths[name].name}*")]
        identity = network_id(names[0], " ".join(graph_numerics(paths[name]) for name in names), "onnxruntime")
        return LazyNetwork(identity, sum(file.stat().st_size for file in files), load)

    def session(name: str) -> OnnxSession:
        return OnnxSession(paths[name], settings.threads)

    def served(role: Role, name: str, by_torch: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if name not in paths:
            return cast(Callable[[Tensor], Tensor], life.recorded(name, by_torch))
        networks[role] = engine([name], partial(session, name))
        return cast(Callable[[Tensor], Tensor], life.guarded(name, _call(networks[role])))

    networks = dict(on_torch.networks)
    if on_engines := variants[0] in paths:
        networks["denoiser"] = engine(variants, lambda: {name: session(name) for name in variants})
    watched, lazy = life.guarded if on_engines else life.recorded, LazyDenoisers(networks["denoiser"])
    denoisers = {name: cast(Denoiser, watched(name, partial(_evaluate, lazy, name))) for name in variants}
    return _Parts(
        networks,
        denoisers,
        served("decoder", "vae/decoder", on_torch.decode),
        served("encoder", "vae/encoder", on_torch.moments),
        None if on_torch.fast_decode is None else served("fast decoder", "vae_tiny/decoder", on_torch.fast_decode),
        *_mixed_numerics(on_torch, paths, variants[0]),
    )


def _mixed_numerics(on_torch: _Parts, paths: Mapping[str, Path], denoiser: str) -> tuple[Numerics, Numerics]:
    """Strict and fast, where some networks run on ONNX Runtime, which gives a row the same bytes in every batch."""
    if not paths:
        return on_torch.strict, on_torch.fast
    decoders = {"vae/decoder", *(["vae_tiny/decoder"] if on_torch.fast_decode is not None else [])}
    lone_decode, free = bool(decoders - set(paths)), denoiser in paths
    lanes = (0, MAX_LANES) if free else (on_torch.strict.padded_lanes, on_torch.strict.max_lanes)
    parts = {"torch": on_torch.fast.id, **{name: graph_numerics(path) for name, path in paths.items()}}
    strict = Numerics(numerics_id({**parts, "invariance": f"fixed-{lanes[0]}"}), *lanes, lone_decode)
    if free and not lone_decode:
        return strict, strict
    return strict, Numerics(numerics_id({**parts, "invariance": "fast"}), 0, MAX_LANES, lone_decode=False)


def _conditioner(spec: ModelSpec, place: Placement) -> LazyNetwork[Any]:
    """A model's text towers or vision tower, which run on torch."""
    folder, clips = spec.folder, spec.system.task == "image-to-video"
    options = [spec.pipeline, str(spec.zeros_for_empty_prompt)]
    if spec.system.denoiser == "unet":
        unet = read_unet_spec(folder)
        options += [str(unet.time_id_dim), str(unet.vector_dim)]
    weights = _digest(folder, CONDITIONER_FOLDERS) + "/".join(options)
    size = place.dtype.itemsize * sum(stored_numbers(tower) for tower in _encoders(folder))

    def load() -> Any:
        if clips:
            return image_to_video.load_conditioner(folder, place.dtype, place.device)
        return text_to_image.load_conditioner(spec, place.dtype, place.device)

    identity = network_id("conditioner", weights, _runs_on(place, place.dtype))
    return LazyNetwork(identity, size, load, modules=modules_of)


def _call(network: LazyNetwork[Any]) -> Callable[[Tensor], Tensor]:
    return lambda given: network.get()(given)


def _evaluate(denoisers: Mapping[str, Denoiser], name: str, *inputs: Tensor) -> Tensor:
    return denoisers[name](*inputs)


def _denoisers(spec: ModelSpec, place: Placement) -> LazyNetwork[Mapping[str, Denoiser]]:
    """The denoiser with its variants, and with the refiner that takes over from it: a row that begins needs both."""
    folders = [spec.folder, *([] if spec.refiner is None else [spec.refiner])]
    part = spec.system.denoiser
    weights = " ".join(weights_digest(folder, (part,)) for folder in folders)
    return LazyNetwork(
        network_id(part, weights, _runs_on(place, place.dtype)),
        place.dtype.itemsize * sum(stored_numbers(folder / part) for folder in folders),
        lambda: text_to_image.load_denoisers(spec.folder, place.dtype, place.device),
        modules=modules_of,
    )


def _module(folder: Path, part: str, place: Placement, dtype: torch.dtype, load: Callable[[], T]) -> LazyNetwork[T]:
    identity = network_id(part, weights_digest(folder, (part,)), _runs_on(place, dtype))
    return LazyNetwork(identity, dtype.itemsize * stored_numbers(folder / part), load, modules=modules_of)


def _runs_on(place: Placement, dtype: torch.dtype) -> str:
    return f"{place.runs_on} {dtype}"


def _rest_digest(spec: ModelSpec) -> str:
    """Hash of what the digest of the base's networks does not cover: conditioner, small decoder, the tables made from
    the schedule, and the refiner."""
    rest = _digest(spec.folder, ("scheduler", "vae_tiny", *CONDITIONER_FOLDERS))
    if spec.refiner is None:
        return rest
    refiner = [weights_digest(spec.refiner, ("unet",)), _digest(spec.refiner, CONDITIONER_FOLDERS)]
    return " ".join([rest, *refiner, str(spec.refiner_at)])


def _digest(folder: Path, parts: tuple[str, ...]) -> str:
    """Hash of the files in the subfolders whose names begin so, and of the single file that has the weights of encoders
    among them."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.startswith(parts)]
    weights = {file for part in _encoders(folder) if part in folders for file in weight_files(part)}
    beside = [file for file in sorted(weights) if file.parent == folder]
    return sha256_of_files([*(path for part in folders for path in sorted(part.iterdir())), *beside])


def _encoders(folder: Path) -> list[Path]:
    """Subfolders of text and vision towers."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and "encoder" in path.name]
