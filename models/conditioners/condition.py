"""What a network is conditioned on, the same for every system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TowerOf = Callable[[str, Callable[[], Any]], Any]
"""What is called in place of a text or vision tower: told the name of the tower's folder, and what loads it on torch.
It may be an engine, and then nothing is loaded."""


def on_torch(_name: str, load: Callable[[], Any]) -> Any:
    """The tower itself."""
    return load()


@dataclass(frozen=True)
class Condition:
    """What one lane of a row is conditioned on."""

    context: Tensor
    """[N, D] fp32: one vector a text token, or one for a whole picture."""
    vector: Tensor
    """[V] fp32, or [T, V] when every frame has its own; [0] for a network that takes none."""
    concat: Tensor | None = None
    """[C', h, w] or [T, C', h, w] fp32: channels put behind the noisy latent of this lane; None for none."""

    def to(self, device: torch.device) -> Condition:
        """The same condition on ``device``."""
        concat = None if self.concat is None else self.concat.to(device)
        return Condition(self.context.to(device), self.vector.to(device), concat)

    def with_concat(self, concat: Tensor) -> Condition:
        """The same condition with these channels behind the noisy latent.

        Args:
            concat: [C', h, w] or [T, C', h, w], any real dtype; kept as fp32.

        Raises:
            ValueError: another number of dimensions.
        """
        if concat.dim() not in (3, 4):
            raise ValueError(f"concat has shape {list(concat.shape)}, expected [C', h, w] or [T, C', h, w]")
        return replace(self, concat=concat.to(torch.float32))
