"""Where a network's parameter lies in a published file: under which name, and how it was written there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """One parameter in a published file."""

    name: str
    third: int | None = None
    """Which third of the rows, where queries, keys and values are one matrix."""
    heads: int = 1
    """Where the rows are grouped by head: so many groups, each with thirds of its own."""
    transposed: bool = False
    swapped: bool = False
    """Whether the halves of the rows stand the other way round."""
    or_identity: bool = False
    """Whether it is the identity where the file has none."""

    def under(self, prefix: str) -> Source:
        """The same with a prefix before its name."""
        return replace(self, name=prefix + self.name)

    def fits(self, stored: Shape, own: Shape) -> bool:
        """Whether a stored tensor of this shape gives a parameter of that shape. A matrix may be stored as a
        convolution of size 1, and the other way round."""
        if self.third is not None:
            if not stored or stored[0] % (3 * self.heads):
                return False
            stored = (stored[0] // 3, *stored[1:])
        return _matrix(stored[::-1] if self.transposed else stored) == _matrix(own)

    def take(self, stored: Tensor, own: Shape) -> Tensor:
        """The parameter from the stored tensor that :meth:`fits`: a view of it where that can be, and no view that
        another third overlaps."""
        if self.third is not None:
            stored = stored.unflatten(0, (self.heads, 3, -1))[:, self.third].flatten(0, 1).contiguous()
        if self.transposed:
            stored = stored.T.contiguous()
        if self.swapped:
            stored = torch.cat(stored.chunk(2)[::-1])
        return stored.reshape(own)


Naming = Callable[[str], Sequence[Source]]
"""A parameter's name in the network -> where it may lie in a published file, the likeliest first."""


def own_names(name: str) -> Sequence[Source]:
    """The naming of files that call parameters as the networks do."""
    return (Source(name),)


def below(prefix: str, naming: Naming) -> Naming:
    """A naming inside a larger file, where all names have a prefix."""
    return lambda name: tuple(source.under(prefix) for source in naming(name))


def _matrix(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
