"""Text and vision encoders from published checkpoints. The networks are the transformers library's; what is read, and
how strictly, is as for our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    T5EncoderModel,
)

from models.checkpoints.clip import clip_names, open_clip_names, t5_names
from models.checkpoints.single_file import Layout
from models.checkpoints.source import Naming, below
from models.checkpoints.stored import Namings, find_stored
from models.eight_bit import fill, make_room_in_8_bits, weight_bytes
from models.spec.config import read_config

E = TypeVar("E", CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, T5EncoderModel)


def load_encoder(
    cls: type[E], folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> E:
    """The encoder of a folder such as ``text_encoder`` in ``dtype`` and on ``device``, for inference; its weights from
    there, or from the single file that lies in the folder above.

    Raises:
        ValueError: a file is missing or damaged, or keys or shapes do not match its config to the letter.
    """
    network = _blank(cls, folder)
    stored = find_stored(folder, network, encoder_namings(network))
    kept = _never_in_half_precision(network) if dtype == torch.float16 else frozenset()
    state = {
        name: tensor.to(device, torch.float32 if kept.intersection(name.split(".")) else dtype)
        for name, tensor in stored.read(mapped=True)
    }
    network.load_state_dict(state, assign=True)
    network.tie_weights()
    _count_positions(network, device)
    return network.eval().requires_grad_(False)


def load_t5_in_8_bits(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> T5EncoderModel:
    """As :func:`load_encoder` of T5, with its linear layers in 8 bits (:mod:`models.eight_bit`) and the rest, which is
    little but the table of tokens, in ``dtype``. There is never more than one unrounded layer in memory.

    Raises:
        ValueError: as there.
    """
    network = _blank(T5EncoderModel, folder)
    stored = find_stored(folder, network, encoder_namings(network))
    make_room_in_8_bits(network)
    fill(network, stored.read(mapped=True), dtype, device)
    network.tie_weights()
    return network.eval().requires_grad_(False)


def bytes_of_t5_in_8_bits(folder: Path, dtype: torch.dtype) -> int:
    """Memory of what :func:`load_t5_in_8_bits` would read.

    Raises:
        ValueError: a file is missing or damaged.
    """
    network = _blank(T5EncoderModel, folder)
    make_room_in_8_bits(network)
    return weight_bytes(network, dtype)


def _blank(cls: type[E], folder: Path) -> E:
    """The network of the folder's config, on the meta device."""
    path = folder / "config.json"
    content = read_config(path)
    try:
        with torch.device("meta"):
            return cls(cast(Any, cls).config_class.from_dict(content))
    except Exception as error:  # the library has errors of its own for what a config may hold
        raise ValueError(f"{path} makes no sense: {error}") from error


def _never_in_half_precision(network: PreTrainedModel) -> frozenset[str]:
    """Names of layers that their library keeps in fp32 where fp16 is asked for: of T5, whose activations overflow."""
    return frozenset(network._keep_in_fp32_modules or ())


def _count_positions(network: PreTrainedModel, device: torch.device | str) -> None:
    """The one buffer that no file has to hold: positions, from 0."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta and name == "position_ids":
                positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
                module.register_buffer(name, positions, persistent=False)
            elif buffer.is_meta:
                raise ValueError(f"{type(network).__name__} has a buffer {name}, of which no file says what is in it")


def encoder_namings(network: PreTrainedModel) -> Namings:
    """How published files call the parameters of such an encoder, which may be on the meta device."""
    naming = t5_names if isinstance(network, T5EncoderModel) else clip_names

    def in_single_file(layout: Layout, part: str) -> Naming:
        prefix = layout.scopes[part][0]
        if layout.name == "sd3" and part == "text_encoder":
            return _or_identity(below(prefix, naming))
        return below(prefix, open_clip_names if layout.is_open_clip(part) else naming)

    # Stable Diffusion 2 takes what the last layer but one makes, and its files have the last one too.
    layers = getattr(network.config, "num_hidden_layers", 0)
    return Namings(naming, in_single_file, rf"cond_stage_model\.model\.transformer\.resblocks\.{layers}\..*")


def _or_identity(naming: Naming) -> Naming:
    """In SD3's single files the first tower has no projection: it was trained with the identity in its place."""
    return lambda name: tuple(replace(source, or_identity=name == "text_projection.weight") for source in naming(name))
