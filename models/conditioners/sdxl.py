"""Prompts and sizes -> what SDXL and its refiner are conditioned on (Podell et al. 2023, sections 2.1, 2.2 and 2.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.blocks import fourier_features
from models.conditioners.condition import Condition, TowerOf, on_torch
from models.conditioners.text import ClipText, SideBySide, TextTower, load_tower
from models.spec.config import read_json, reading
from models.spec.unet import UNetSpec

SIZES, REFINER_SIZES = 6, 5
"""Numbers beside the pooled text."""


@dataclass(frozen=True)
class Framing:
    """How a picture pretends to have been cut from its original, in pixels. By default it is the whole original."""

    original_size: tuple[int, int] | None = None
    """Width and height; None: those of the picture itself."""
    crop: tuple[int, int] = (0, 0)
    """How far from the left and from the top."""


UNCROPPED = Framing()


class SDXLConditioner:
    """Two CLIP-format text towers side by side, their penultimate layers joined, the second one's projection pooled."""

    def __init__(self, towers: tuple[TextTower, TextTower], time_id_dim: int, zeros_for_empty: bool) -> None:
        self.text = SideBySide(towers)
        self.time_id_dim = time_id_dim
        self.zeros_for_empty = zeros_for_empty

    @classmethod
    def load(
        cls,
        folder: Path,
        unet: UNetSpec,
        zeros_for_empty: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tower_of: TowerOf = on_torch,
    ) -> SDXLConditioner:
        """Read ``text_encoder``, ``text_encoder_2`` and their tokenizers from a diffusers folder.

        Raises:
            ValueError: the UNet takes a vector of another length.
        """
        _check_vector(unet, folder, SIZES)
        load = partial(load_tower, folder, penultimate=True, dtype=dtype, device=device, tower_of=tower_of)
        towers = load("text_encoder", projected=False), load("text_encoder_2", projected=True)
        return cls(towers, unet.time_id_dim, zeros_for_empty)

    @property
    def networks(self) -> tuple[ClipText, ...]:
        """Of the towers that are on torch."""
        return self.text.networks

    @torch.inference_mode()
    def encode(self, prompt: str, width: int, height: int, framing: Framing = UNCROPPED, chunks: int = 1) -> Condition:
        """Condition of one prompt for a picture of ``width`` x ``height`` pixels.

        Args:
            prompt: with weights and ``BREAK``s.
            width: of the picture in pixels.
            height: of the picture in pixels.
            framing: original size and crop.
            chunks: fill the context up to so many with empty ones.
        """
        context, pooled = self.text.encode(prompt, chunks)
        return Condition(context, torch.cat([pooled[1], size_features(width, height, self.time_id_dim, framing)]))

    def encode_pair(
        self, prompt: str, negative_prompt: str, width: int, height: int, framing: Framing = UNCROPPED
    ) -> tuple[Condition, Condition]:
        """Positive and negative condition of one picture, of equally many tokens.

        An empty negative prompt is all zeros, the sizes apart, where the model was trained so.
        """
        if not negative_prompt and self.zeros_for_empty:
            positive = self.encode(prompt, width, height, framing)
            return positive, self._without_text(positive)
        chunks = max(self.text.count(prompt), self.text.count(negative_prompt))
        positive = self.encode(prompt, width, height, framing, chunks)
        return positive, self.encode(negative_prompt, width, height, framing, chunks)

    def tokenize(self, prompts: list[str], tower: int) -> Tensor:
        """Token ids [B, N] int64 of plain texts, padded and cut to the tower's length."""
        return self.text.towers[tower].tokenize(prompts)

    def encode_tokens(self, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Token ids of both towers, each [B, N] -> context [B, N, D] and pooled text [B, P]."""
        (first, _), (second, pooled) = (
            tower.network(tokens) for tower, tokens in zip(self.text.towers, ids, strict=True)
        )
        return torch.cat([first, second], dim=-1), pooled

    def _without_text(self, condition: Condition) -> Condition:
        pooled = len(condition.vector) - SIZES * self.time_id_dim
        vector = torch.cat([torch.zeros(pooled), condition.vector[pooled:]])
        return Condition(torch.zeros_like(condition.context), vector)


class SDXLRefinerConditioner:
    """The second tower alone; an aesthetic score takes the place of the target size. An empty negative prompt is an
    encoded empty text."""

    def __init__(self, tower: TextTower, time_id_dim: int) -> None:
        self.text = SideBySide([tower])
        self.time_id_dim = time_id_dim

    @classmethod
    def load(
        cls,
        folder: Path,
        unet: UNetSpec,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tower_of: TowerOf = on_torch,
    ) -> SDXLRefinerConditioner:
        """Read ``text_encoder_2`` and ``tokenizer_2`` of a diffusers folder.

        Raises:
            ValueError: the UNet takes a vector of another length.
        """
        _check_vector(unet, folder, REFINER_SIZES)
        load = partial(load_tower, projected=True, penultimate=True, dtype=dtype, device=device, tower_of=tower_of)
        return cls(load(folder, "text_encoder_2"), unet.time_id_dim)

    @property
    def networks(self) -> tuple[ClipText, ...]:
        """The tower's, if it is on torch."""
        return self.text.networks

    @torch.inference_mode()
    def encode(
        self,
        prompt: str,
        width: int,
        height: int,
        framing: Framing = UNCROPPED,
        chunks: int = 1,
        aesthetic_score: float = 6.0,
    ) -> Condition:
        """Condition of one prompt for a picture of ``width`` x ``height`` pixels.

        Args:
            prompt: with weights and ``BREAK``s.
            width: of the picture in pixels; the refiner is told it only as the original's.
            height: of the picture in pixels.
            framing: original size and crop.
            chunks: fill the context up to so many with empty ones.
            aesthetic_score: about 0 to 10.
        """
        context, pooled = self.text.encode(prompt, chunks)
        numbers = torch.tensor([*_framed(width, height, framing), aesthetic_score], dtype=torch.float32)
        return Condition(context, torch.cat([pooled[0], fourier_features(numbers, self.time_id_dim).flatten()]))

    def encode_pair(
        self,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        framing: Framing = UNCROPPED,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
    ) -> tuple[Condition, Condition]:
        """Positive and negative condition of one picture, of equally many tokens."""
        chunks = max(self.text.count(prompt), self.text.count(negative_prompt))
        return (
            self.encode(prompt, width, height, framing, chunks, aesthetic_score),
            self.encode(negative_prompt, width, height, framing, chunks, negative_aesthetic_score),
        )


def size_features(width: int, height: int, dim: int, framing: Framing = UNCROPPED) -> Tensor:
    """Fourier features [6 * dim] of SDXL's six numbers: original height and width, crop top and left, target height
    and width."""
    sizes = torch.tensor([*_framed(width, height, framing), height, width], dtype=torch.float32)
    return fourier_features(sizes, dim).flatten()


def _framed(width: int, height: int, framing: Framing) -> tuple[int, int, int, int]:
    original_width, original_height = framing.original_size or (width, height)
    left, top = framing.crop
    return original_height, original_width, top, left


def _check_vector(unet: UNetSpec, folder: Path, sizes: int) -> None:
    with reading(path := folder / "text_encoder_2" / "config.json"):
        text = read_json(path)["projection_dim"]
    if unet.vector_dim != (made := text + sizes * unet.time_id_dim):
        raise ValueError(
            f"unet projection_class_embeddings_input_dim={unet.vector_dim}, expected {made}: {text} of pooled text and "
            f"{sizes} numbers of addition_time_embed_dim={unet.time_id_dim} each"
        )
