"""Opens models: what a folder holds, how its networks run, and where they come from when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from engines.cache import sha256_of_files
from engines.life import EngineLife
from engines.prepare import weights_digest
from models.adapters.file import DENOISER
from models.adapters.fuse import Weighted
from models.adapters.whole import AdapterSet, fuse_denoiser, fuse_text_encoders
from models.checkpoints.stored import stored_numbers, weight_files
from models.conditioners.condition import TowerOf, on_torch
from models.conditioners.video import SVDConditioner
from models.families import image_to_video, text_to_image
from models.families.image_to_video import ImageToVideoModel
from models.families.row import Denoiser
from models.families.text_to_image import TextConditioner, TextToImageModel, moments_of
from models.spec.memory import T5
from models.spec.model import ModelSpec
from models.spec.unet import read_unet_spec
from models.spec.vae import VAESpec, read_part_spec, read_temporal_vae_spec
from models.weights import load_part, load_temporal_vae, load_tiny_decoder
from service.settings import Settings
from service.worker.lazy import LazyConditioner, LazyDenoisers, LazyNetwork
from service.worker.loaded import LoadedModel, Role
from service.worker.numerics import MAX_LANES, Numerics, network_id, numerics_id, strict_lanes
from service.worker.parking import modules_of
from service.worker.placement import Placement, placement
from service.worker.upgrades import engine_life
from service.worker.ways import Parts, ways

T = TypeVar("T")

CONDITIONER_FOLDERS = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")
"""What the names of the folders begin with that a conditioner is read from."""


def load_model(
    spec: ModelSpec, settings: Settings, place: Placement | None = None, engines: EngineLife | None = None,
    adapters: AdapterSet | None = None,
) -> LoadedModel:  # fmt: skip
    """Open a model on the configured back end. Networks on torch are read when they are first used, or before by
    whoever holds the model.

    Args:
        spec: of the model.
        settings: of the installation.
        place: where its networks run; where the settings say, if not given.
        engines: the model's; those that the settings say, made first where the model is to wait for them, if not given.
        adapters: to have in its weights.

    Raises:
        ValueError: a file of the model is missing, or cannot be what its name says.
    """
    place = place or placement(settings)
    life = engine_life(spec, settings, place, adapters=adapters) if engines is None else engines
    torch_parts = _modules(spec, place)
    if adapters is not None:
        torch_parts = _carrying(torch_parts, spec, adapters)
    found = [torch_parts]
    if life.maker is not None and life.states:
        variants = [name for name in life.maker.networks() if name.partition("/")[0] == spec.system.denoiser]
        found = ways(torch_parts, variants, life, life.maker)
    first, *others = [_opened(spec, parts, place, settings) for parts in found]
    return replace(first, otherwise=tuple(others))


def _opened(spec: ModelSpec, parts: Parts, place: Placement, settings: Settings) -> LoadedModel:
    model = _clips(spec, parts, place) if spec.system.task == "image-to-video" else _pictures(spec, parts, place)
    graphs = settings.graphs and place.device.type == "cuda" and parts.capturable
    return LoadedModel(model, parts.strict, parts.fast, parts.networks, graphs, parts.takes)


def _pictures(spec: ModelSpec, parts: Parts, place: Placement) -> TextToImageModel:
    vae = read_part_spec(spec.folder, spec.system.autoencoder)
    return text_to_image.load_with(
        spec.folder,
        parts.denoisers,
        parts.decode,
        text_to_image.encoder_of(vae, parts.moments) if isinstance(vae, VAESpec) else None,
        cast(TextConditioner, LazyConditioner(parts.networks["conditioner"])),
        parts.fast_decode,
        place.dtype,
        place.device,
    )


def _clips(spec: ModelSpec, parts: Parts, place: Placement) -> ImageToVideoModel:
    vae = read_temporal_vae_spec(spec.folder)
    return image_to_video.load_with(
        spec.folder,
        cast(SVDConditioner, LazyConditioner(parts.networks["conditioner"])),
        parts.denoisers,
        image_to_video.decoder_of(vae, parts.decode),
        image_to_video.encoder_of(vae, parts.moments),
        place.device,
    )


def _modules(spec: ModelSpec, place: Placement) -> Parts:
    """Everything on torch. Encoder and decoder are one network, which is read whole."""
    folder, clips = spec.folder, spec.system.task == "image-to-video"
    part = spec.system.autoencoder
    load: Callable[..., Any] = load_temporal_vae if clips else partial(load_part, part=part)
    autoencoder = read_temporal_vae_spec(folder) if clips else read_part_spec(folder, part)
    dtype = place.dtype_of(autoencoder.force_upcast)
    vae: LazyNetwork[Any] = _module(folder, part, place, dtype, lambda: load(folder, dtype=dtype, device=place.device))
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
        "weights": weights_digest(folder, (spec.system.denoiser, part)),
        "rest": _rest_digest(spec),
        **_t5(spec, place),
    }
    strict = Numerics(numerics_id({**parts, "invariance": f"fixed-{lanes}"}), lanes, lanes, lone_decode=True)
    fast = Numerics(numerics_id({**parts, "invariance": "fast"}), 0, MAX_LANES, lone_decode=False)

    def moments(pictures: Tensor) -> Tensor:
        return moments_of(vae.get(), pictures)

    fast_decode = _call(networks["fast decoder"]) if "fast decoder" in networks else None
    networks["conditioner"] = _conditioner(spec, place)
    condition = partial(_load_conditioner, spec, place)
    return Parts(networks, LazyDenoisers(denoisers), decode, moments, fast_decode, condition, strict, fast)


def _carrying(parts: Parts, spec: ModelSpec, adapters: AdapterSet) -> Parts:
    """A model with a set of adapters is one of its own: the networks that the set changes are read once more and fused
    with it, those that it leaves alone are shared with the plain model, whose weights stay as they are."""
    networks, denoisers, condition = dict(parts.networks), parts.denoisers, parts.condition

    def fused(role: Role, fuse: Callable[[Any, ModelSpec, Sequence[Weighted]], None]) -> LazyNetwork[Any]:
        return networks[role].derived(adapters.identity, lambda network: fuse(network, spec, adapters.read()))

    if DENOISER in adapters.parts:
        networks["denoiser"] = fused("denoiser", fuse_denoiser)
        denoisers = LazyDenoisers(networks["denoiser"])
    if adapters.parts - {DENOISER}:
        networks["conditioner"], condition = fused("conditioner", fuse_text_encoders), None
    strict, fast = (
        replace(numerics, id=numerics_id({"plain": numerics.id, "adapters": adapters.identity}))
        for numerics in (parts.strict, parts.fast)
    )
    return replace(parts, networks=networks, denoisers=denoisers, condition=condition, strict=strict, fast=fast)


def _conditioner(spec: ModelSpec, place: Placement) -> LazyNetwork[Any]:
    """A model's text towers or vision tower on torch."""
    folder = spec.folder
    options = [spec.pipeline, str(spec.zeros_for_empty_prompt), *_t5(spec, place).values()]
    if spec.system.denoiser == "unet":
        unet = read_unet_spec(folder)
        options += [str(unet.time_id_dim), str(unet.vector_dim)]
    weights = _digest(folder, CONDITIONER_FOLDERS) + "/".join(options)
    size = sum(_encoder_bytes(tower, place) for tower in _encoders(folder))
    identity = network_id("conditioner", weights, _runs_on(place, place.dtype))
    return LazyNetwork(identity, size, partial(_load_conditioner, spec, place, on_torch), modules=modules_of)


def _load_conditioner(spec: ModelSpec, place: Placement, tower_of: TowerOf) -> Any:
    if spec.system.task == "image-to-video":
        return image_to_video.load_conditioner(spec.folder, place.dtype, place.device, tower_of)
    return text_to_image.load_conditioner(spec, place.dtype, place.device, place.eight_bit_t5, tower_of)


def _encoder_bytes(folder: Path, place: Placement) -> int:
    """Memory of the weights of a folder such as ``text_encoder``, without reading them."""
    if not place.eight_bit_t5 or folder.name != T5:
        return place.dtype.itemsize * stored_numbers(folder)
    from models.encoders import bytes_of_t5_in_8_bits  # which takes seconds

    return bytes_of_t5_in_8_bits(folder, place.dtype)


def _call(network: LazyNetwork[Any]) -> Callable[[Tensor], Tensor]:
    return lambda given: network.get()(given)


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
    rest = _digest(spec.folder, ("scheduler", "low_res_scheduler", "vae_tiny", *CONDITIONER_FOLDERS))
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


def _t5(spec: ModelSpec, place: Placement) -> dict[str, str]:
    """What bytes depend on beside the precision, of a model that has T5."""
    return {"t5": "8 bits"} if place.eight_bit_t5 and (spec.folder / T5).is_dir() else {}


def _encoders(folder: Path) -> list[Path]:
    """Subfolders of text and vision towers."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and "encoder" in path.name]
