"""What a network without a context is conditioned on, beside the channels behind its latents."""

from __future__ import annotations

import torch
from torch import nn

from models.conditioners.condition import Condition


class NoConditioner:
    """Reads no text: every prompt gives the same condition."""

    networks: tuple[nn.Module, ...] = ()

    def encode(self, prompt: str, width: int, height: int) -> Condition:
        """A condition of no numbers: context [1, 0], vector [0]. Nothing that is given is read."""
        del prompt, width, height
        return Condition(torch.zeros(1, 0), torch.zeros(0))

    def encode_pair(self, prompt: str, negative_prompt: str, width: int, height: int) -> tuple[Condition, Condition]:
        """Positive and negative condition, which are the same."""
        return self.encode(prompt, width, height), self.encode(negative_prompt, width, height)
