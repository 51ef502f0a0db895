"""Prompts and sizes -> what the UNet is conditioned on, SDXL's way (Podell et al. 2023, sections 2.1 and 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from models.blocks import fourier_features
from models.spec.unet import UNetSpec


@dataclass(frozen=True)
class Condition:
    """What one lane of a row is conditioned on."""

    context: Tensor
    """[N, D] fp32, one vector a token."""
    vector: Tensor
    """[V] fp32, pooled text then Fourier features of the six sizes."""


class SDXLConditioner:
    """Two CLIP-format text towers side by side, their penultimate layers joined, the second one's projection pooled."""

    def __init__(
        self,
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
        towers: tuple[CLIPTextModel, CLIPTextModelWithProjection],
        time_id_dim: int,
        zeros_for_empty: bool,
    ) -> None:
        self.tokenizers = tokenizers
        self.towers = towers
        self.time_id_dim = time_id_dim
        self.zeros_for_empty = zeros_for_empty

    @classmethod
    def load(cls, folder: Path, unet: UNetSpec, zeros_for_empty: bool = True) -> SDXLConditioner:
        """Read ``text_encoder``, ``text_encoder_2`` and their tokenizers from a diffusers folder, in fp32."""
        disable_progress_bar()  # a bar for every tower would fill the worker's log
        tokenizers = tuple(CLIPTokenizer.from_pretrained(folder / f"tokenizer{n}") for n in ("", "_2"))
        first = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()
        return cls(tokenizers, (first, second), unet.time_id_dim, zeros_for_empty)

    @torch.inference_mode()
    def encode(self, prompt: str, width: int, height: int) -> Condition:
        """Condition of one prompt for a picture of ``width`` x ``height`` pixels, uncropped."""
        context, pooled = self.encode_tokens([self.tokenize([prompt], n) for n in (0, 1)])
        return self._condition(context[0], pooled[0], width, height)

    @torch.inference_mode()
    def encode_negative(self, prompt: str, width: int, height: int) -> Condition:
        """As :meth:`encode`, but an empty prompt is all zeros where the model was trained so."""
        condition = self.encode(prompt, width, height)
        if prompt or not self.zeros_for_empty:
            return condition
        pooled = len(condition.vector) - 6 * self.time_id_dim
        vector = torch.cat([torch.zeros(pooled), condition.vector[pooled:]])
        return Condition(torch.zeros_like(condition.context), vector)

    def tokenize(self, prompts: list[str], tower: int) -> Tensor:
        """Token ids [B, N] int64, padded and cut to the tower's length."""
        tokenizer = self.tokenizers[tower]
        tokens = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids
        return ids

    def encode_tokens(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Token ids of both towers, each [B, N] -> context [B, N, D] and pooled text [B, P]."""
        first, second = (
            tower(tokens, output_hidden_states=True) for tower, tokens in zip(self.towers, ids, strict=True)
        )
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

    def _condition(self, context: Tensor, pooled: Tensor, width: int, height: int) -> Condition:
        return Condition(context, torch.cat([pooled, size_features(width, height, self.time_id_dim)]))


def size_features(width: int, height: int, dim: int) -> Tensor:
    """Fourier features [6 * dim] of SDXL's six numbers: original height and width, crop top and left (none), target
    height and width."""
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    return fourier_features(sizes, dim).flatten()
