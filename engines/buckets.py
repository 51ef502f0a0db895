"""The sizes that an engine of fixed shapes is built for, and which calls it takes. Plain data; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engines.signature import Signature, Sizes

Shapes = Sequence[Sequence[int]]
"""The shapes of a call's inputs, in its order."""


@dataclass(frozen=True)
class Buckets:
    """What an engine of fixed shapes takes: fewer lanes than a bucket has, everything else exactly as the bucket."""

    signature: Signature
    sizes: tuple[Sizes, ...]

    @property
    def lanes(self) -> int:
        """Lanes of the largest one."""
        return max(sizes["batch"] for sizes in self.sizes)

    def takes(self, lane: Sequence[int], tokens: int = 0, lanes: int = 1) -> bool:
        """Whether calls of up to ``lanes`` lanes can run here.

        Args:
            lane: of the first input, without its batch: [(T,) C, h, w]. How many channels lie behind the network's own
                does not matter.
            tokens: length of the context; not looked at where the network has none of free length.
            lanes: the most of one call.
        """
        axes = self.signature.inputs[0].axes[1:]
        return len(axes) == len(lane) and any(
            sizes["batch"] >= lanes
            and sizes.get("tokens", tokens) == tokens
            and all(not axis.symbol or axis.size(sizes) == size for axis, size in zip(axes, lane, strict=True))
            for sizes in self.sizes
        )

    def lanes_of(self, shapes: Shapes) -> int:
        """How many lanes of a call of these shapes can run here, the first ones; 0 for a call that does not fit."""
        sizes = self.signature.match(shapes)
        return min(sizes["batch"], max((one["batch"] for one in self.sizes if _rest(one) == _rest(sizes)), default=0))


def chosen(signature: Signature, calls: Sequence[Shapes], lanes: Sequence[int]) -> tuple[Sizes, ...]:
    """One or two buckets for calls that occurred: the shape that most of them have, in the two numbers of lanes; or the
    two most frequent shapes, where there is one number.

    Args:
        signature: of the network.
        calls: at least one; of equally frequent shapes the later one counts more.
        lanes: one or two numbers. Every shape has a bucket of the largest.

    Raises:
        ValueError: there are no calls, or one does not fit the network.
    """
    if not calls:
        raise ValueError("sizes are chosen by calls, and there are none")
    counted = Counter(_rest(signature.match(shapes)) for shapes in reversed(calls))
    (first, _), *others = counted.most_common(2)
    most, fewest = max(lanes), min(lanes)
    second = [(first, fewest)] if fewest < most else [(rest, most) for rest, _ in others]
    return tuple({"batch": count, **dict(rest)} for rest, count in ((first, most), *second))


def _rest(sizes: Sizes) -> tuple[tuple[str, int], ...]:
    """All but the lanes."""
    return tuple(sorted((symbol, size) for symbol, size in sizes.items() if symbol != "batch"))
