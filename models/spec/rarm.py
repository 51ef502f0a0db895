"""What a retrieval-augmented autoregressive transformer is: plain data. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RARMSpec:
    """The transformer of semi-parametric image synthesis (Blattmann et al. 2022, section 3.3); the defaults are those
    of the published ImageNet models."""

    codes: int = 16384
    """Entries of the first stage's codebook."""
    length: int = 256
    """Codes of one picture, row by row."""
    width: int = 768
    heads: int = 12
    layers: int = 18
    context_dim: int = 512
    """Length of a neighbour's embedding."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}")
