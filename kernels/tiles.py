"""Which tile a kernel runs with, by op, shape class and architecture: a table, not a search at run time.

Tiles come from the op's own file, where the first candidate of a shape class is its default. ``measured.json`` beside
this file overrides it, and also names the implementation that was the fastest; ``darkroom bench kernels --tune`` writes
it on the GPU it runs on, and nothing is in it that was not measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kernels.custom_op import constant_when_traced
from kernels.launch import ARCHITECTURES, INTERPRETER, Tile

MEASURED = Path(__file__).parent / "measured.json"
Measured = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""{architecture: {op: {shape class: {"backend": implementation, "tile": index of the kernel's candidate}}}}"""

_in_place: list[Measured] = []


@dataclass(frozen=True)
class TileTable:
    """The tiles of one op."""

    op: str
    candidates: Mapping[str, tuple[Tile, ...]]
    """By shape class. The first is the default, the others are what tuning tries."""
    interpreted: Mapping[str, Tile]
    """By shape class, for the interpreter."""
    exceptions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """By shape class and architecture, the candidate that is the default there: where the first one spills registers
    or does not fit the shared memory."""

    def tile(self, shape_class: str, architecture: int) -> Tile:
        """The tile to run with.

        Raises:
            KeyError: the op has no such shape class.
        """
        if architecture == INTERPRETER:
            return self.interpreted[shape_class]
        index = self.exceptions.get((shape_class, architecture), 0)
        row = _measured_row(self.op, shape_class, architecture)
        return self.candidates[shape_class][row["tile"] if row else index]

    def fastest(self, shape_class: str, architecture: int) -> str | None:
        """The implementation that was the fastest where it was measured; None where it was not."""
        return _measured_backend(self.op, shape_class, architecture)


def fingerprint() -> str:
    """A hash of what was measured: part of what a row's bytes depend on, since it decides what runs."""
    return hashlib.sha256(MEASURED.read_bytes()).hexdigest()[:16]


def forget() -> None:
    """Read the file again when it is needed next: it was written."""
    _measured.cache_clear()


@contextmanager
def using(table: Measured) -> Iterator[None]:
    """With another table in place of the file's: for tuning, which tries every tile, and for tests."""
    _in_place.append(table)
    try:
        yield
    finally:
        _in_place.pop()


def _measured_row(op: str, shape_class: str, architecture: int) -> dict[str, Any] | None:
    by_op = (_in_place[-1] if _in_place else _measured()).get(ARCHITECTURES.get(architecture, ""), {})
    row: dict[str, Any] | None = by_op.get(op, {}).get(shape_class)
    return row


@constant_when_traced
def _measured_backend(op: str, shape_class: str, architecture: int) -> str | None:
    row = _measured_row(op, shape_class, architecture)
    return row["backend"] if row else None


@lru_cache(maxsize=1)
def _measured() -> Measured:
    table: Measured = json.loads(MEASURED.read_text())
    return table
