"""Engines of fixed shapes without a GPU: ONNX Runtime that takes what a plan of TensorRT would take, and pads as it
does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from engines.buckets import Buckets
from engines.cache import KEY
from engines.call import Output, outputs_of
from engines.maker import OnnxMaker
from engines.networks import Network, bucket
from engines.session import OnnxSession
from engines.signature import Signature
from models.spec.model import ModelSpec


def network_of(path: Path) -> str:
    """The name of the network whose graph lies in a cache at ``path``."""
    name: str = json.loads((path.parent / KEY).read_text())["network"]
    return name


class FixedSession(OnnxSession):
    """Fewer lanes than the bucket are filled up with copies of the last one; what fits no bucket is refused."""

    def __init__(self, path: Path, buckets: Buckets, before: Callable[[str], None]) -> None:
        super().__init__(path, threads=1)
        self._buckets, self._before, self._name = buckets, before, network_of(path)

    def __call__(self, *inputs: Tensor) -> Output:
        """As the graph."""
        self._before(self._name)
        shapes, lanes = [tensor.shape for tensor in inputs], len(inputs[0])
        if self._buckets.lanes_of(shapes) < lanes:
            raise ValueError(f"shapes {shapes} fit no bucket")
        missing = self._buckets.lanes - lanes
        filled = (t if not missing else t[[*range(lanes), *[lanes - 1] * missing]] for t in inputs)
        outputs = tuple(output[:lanes] for output in outputs_of(super().__call__(*filled)))
        return outputs[0] if len(outputs) == 1 else outputs


def _nothing(_name: str) -> None:
    pass


@dataclass(frozen=True)
class FixedMaker(OnnxMaker):
    """Of the denoiser and the decoder, in one bucket each: so many lanes of the model's native size."""

    lanes: Mapping[str, int] = field(default_factory=lambda: {"unet": 8, "vae/decoder": 1})
    rows_are_their_own: bool = False
    before_load: Callable[[str], None] = _nothing
    before_call: Callable[[str], None] = _nothing

    def networks(self) -> Mapping[str, Network]:
        """Those that are made of."""
        return {name: network for name, network in super().networks().items() if name in self.lanes}

    def find(self, name: str) -> Path | None:  # noqa: ARG002 (its graph may be there)
        """Nothing is there before it is built."""
        return None

    def open(self, path: Path) -> FixedSession:
        """The session."""
        self.before_load(network_of(path))
        return FixedSession(path, self.buckets(path), self.before_call)

    def numerics(self, path: Path) -> str:
        """Another one than the graph's."""
        return f"fixed/{super().numerics(path)}"

    def buckets(self, path: Path) -> Buckets:
        """The one bucket."""
        name, spec = network_of(path), ModelSpec.read(self.folder)
        sizes = bucket(self.networks()[name], spec, self.lanes[name], *spec.sizes[0])
        return Buckets(Signature.read(path.parent), (sizes,))
