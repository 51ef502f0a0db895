"""Prompts -> what Stable Diffusion 1.x and 2.x are conditioned on (Rombach et al. 2022)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from models.conditioners.condition import Condition, TowerOf, on_torch
from models.conditioners.text import ClipText, SideBySide, TextTower, load_tower


class StableDiffusionConditioner:
    """One text tower, its last layer after the final norm: CLIP ViT-L/14 for 1.x, OpenCLIP ViT-H/14 cut to 23 layers,
    as published, for 2.x. Nothing is pooled, and an empty negative prompt is an encoded empty text."""

    def __init__(self, tower: TextTower) -> None:
        self.text = SideBySide([tower])

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tower_of: TowerOf = on_torch,
    ) -> StableDiffusionConditioner:
        """Read ``text_encoder`` and ``tokenizer`` of a diffusers folder."""
        load = partial(load_tower, projected=False, penultimate=False, dtype=dtype, device=device, tower_of=tower_of)
        return cls(load(folder, "text_encoder"))

    @property
    def networks(self) -> tuple[ClipText, ...]:
        """The tower's, if it is on torch."""
        return self.text.networks

    @torch.inference_mode()
    def encode(self, prompt: str, width: int, height: int, chunks: int = 1) -> Condition:
        """Condition of one prompt: context [C * 77, D], vector [0].

        Args:
            prompt: with weights and ``BREAK``s.
            width: of the picture; the network is not told.
            height: of the picture; the network is not told.
            chunks: fill the context up to so many with empty ones.
        """
        del width, height
        context, _ = self.text.encode(prompt, chunks)
        return Condition(context, torch.zeros(0))

    def encode_pair(self, prompt: str, negative_prompt: str, width: int, height: int) -> tuple[Condition, Condition]:
        """Positive and negative condition of one picture, of equally many tokens."""
        chunks = max(self.text.count(prompt), self.text.count(negative_prompt))
        return self.encode(prompt, width, height, chunks), self.encode(negative_prompt, width, height, chunks)
