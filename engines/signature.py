"""How a network is called: names, shapes and types of what goes in and comes out. Plain data; imports no torch.

A signature lies beside every exported graph and every plan, as ``signature.json``, so that a session takes exactly the
call of the torch module that it stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

FILE = "signature.json"
Dtype = Literal["float32", "int64"]
Sizes = Mapping[str, int]
"""What each symbol stands for: ``{"batch": 2, "height": 64}``."""
Values = Literal["normal", "uniform", "whole"]

_AXIS = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)|(\d+)")


@dataclass(frozen=True)
class Axis:
    """A fixed size, or a multiple of a symbol."""

    factor: int
    symbol: str = ""

    @classmethod
    def parse(cls, text: str | int) -> Axis:
        """Read ``64``, ``height`` or ``2*height``.

        Raises:
            ValueError: another form.
        """
        match = _AXIS.fullmatch(str(text))
        if match is None:
            raise ValueError(f"axis {text!r} is neither a number, nor a name, nor a multiple of a name")
        return cls(int(match[3])) if match[3] else cls(int(match[1] or 1), match[2])

    def __str__(self) -> str:
        if not self.symbol:
            return str(self.factor)
        return self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"

    def size(self, sizes: Sizes) -> int:
        """Its size where the symbols stand for ``sizes``."""
        return self.factor * sizes[self.symbol] if self.symbol else self.factor


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: str
    axes: tuple[Axis, ...]
    dtype: Dtype = "float32"
    values: Values = "normal"
    """What an example of it holds: standard normal numbers, uniform ones in [0, below), or whole ones of these."""
    below: float = 1.0

    @property
    def empty(self) -> bool:
        """Whether it never holds an element: such an input is part of the call and not of the graph."""
        return any(not axis.symbol and axis.factor == 0 for axis in self.axes)

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape where the symbols stand for ``sizes``."""
        return tuple(axis.size(sizes) for axis in self.axes)


@dataclass(frozen=True)
class Signature:
    """The call of one network: inputs in order, outputs in order. What crosses it is fp32 or int64 in every precision
    of the graph, so that a session of any precision can take the place of any other."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    largest: Sizes = field(default_factory=dict)
    """The largest value of those symbols that have one."""

    @property
    def graph_inputs(self) -> tuple[Port, ...]:
        """The inputs that an exported graph has."""
        return tuple(port for port in self.inputs if not port.empty)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbol, in the order of the call."""
        return tuple(dict.fromkeys(axis.symbol for port in self.inputs for axis in port.axes if axis.symbol))

    def match(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """What the symbols stand for in a call with inputs of these shapes.

        Raises:
            ValueError: a shape that the network does not take; names the input, its shape and the expected one.
        """
        sizes: dict[str, int] = {}
        for port, shape in zip(self.inputs, shapes, strict=True):
            fits = len(shape) == len(port.axes)
            for axis, size in zip(port.axes, shape, strict=False):
                if not axis.symbol:
                    fits &= size == axis.factor
                    continue
                count = size // axis.factor
                limit = self.largest.get(axis.symbol, count)
                fits &= 0 < count <= limit and size == count * axis.factor
                fits &= sizes.setdefault(axis.symbol, count) == count
            if not fits:
                wanted = ", ".join(map(str, port.axes))
                known = f" with {sizes}" if sizes else ""
                raise ValueError(f"{port.name} has shape {tuple(shape)}, expected ({wanted}){known}{self._limits()}")
        return sizes

    def _limits(self) -> str:
        return "".join(f", {symbol} at most {limit}" for symbol, limit in self.largest.items())

    def write(self, folder: Path) -> None:
        """Write ``signature.json`` into ``folder``."""
        ports = {kind: [_port_to_json(port) for port in getattr(self, kind)] for kind in ("inputs", "outputs")}
        text = json.dumps({**ports, "largest": dict(self.largest)}, indent=2)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Signature:
        """Read ``signature.json`` of ``folder``.

        Raises:
            ValueError: the file is missing or is none.
        """
        path = folder / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            inputs, outputs = (tuple(_port_from_json(port) for port in data[kind]) for kind in ("inputs", "outputs"))
            return cls(inputs, outputs, {str(name): int(limit) for name, limit in data["largest"].items()})
        except (OSError, LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a signature: {error}") from error


def port(name: str, axes: Iterable[str | int], dtype: Dtype = "float32", values: Values = "normal",
         below: float = 1.0) -> Port:  # fmt: skip
    """A port whose axes are written as ``64``, ``"height"`` or ``"2*height"``."""
    return Port(name, tuple(Axis.parse(axis) for axis in axes), dtype, values, below)


def _port_to_json(port: Port) -> dict[str, object]:
    return {**asdict(port), "axes": [str(axis) for axis in port.axes]}


def _port_from_json(data: dict[str, object]) -> Port:
    return port(**data)  # type: ignore[arg-type]  # checked by what it builds
