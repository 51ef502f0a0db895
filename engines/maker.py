"""What a back end does for the engines of one model: finds them in the cache, builds and opens them. Nobody above asks
which back end it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engines.buckets import Buckets
from engines.cache import EngineCache
from engines.call import Session, file_bytes
from engines.networks import Network, networks_of, runs_as_engine
from engines.precision import Precision
from engines.prepare import build_served, find_graph, served_key
from engines.session import OnnxSession, graph_numerics, restored_bytes
from engines.verdict import Sample

if TYPE_CHECKING:
    from models.adapters.whole import AdapterSet


class Maker(Protocol):
    """The engines of one model on one back end. Goes to other processes, so it holds plain data alone."""

    @property
    def folder(self) -> Path:
        """The model's."""

    @property
    def name(self) -> str:
        """Of the back end."""

    @property
    def device(self) -> str:
        """Where inputs and outputs are, as torch names it."""

    @property
    def precision(self) -> Precision:
        """What is asked for; a network may have one of its own."""

    @property
    def threads(self) -> int:
        """That one operation may use on the processor."""

    @property
    def rows_are_their_own(self) -> bool:
        """Whether a row has the same bytes in every batch."""

    @property
    def adapters(self) -> AdapterSet | None:
        """The set in the model's weights."""

    def networks(self) -> Mapping[str, Network]:
        """The networks that engines are made of, by name, the denoiser first.

        Raises:
            ValueError: the folder is no model's.
        """

    def find(self, name: str) -> Path | None:
        """The file of the engine that the cache holds."""

    def build(self, name: str, samples: Sequence[Sample]) -> Path:
        """The file of an engine for calls such as these, made if the cache lacks it; in 8 bits by their scales, where
        the network's card asks for that.

        Raises:
            RuntimeError: it cannot be built.
        """

    def discard(self, name: str, path: Path) -> None:
        """Take an engine out of the cache."""

    def open(self, path: Path) -> Session:
        """Load it; raises whatever the library does."""

    def numerics(self, path: Path) -> str:
        """What the bytes of its output depend on."""

    def weight_bytes(self, name: str, path: Path) -> int:
        """Memory that its weights take once it is loaded."""

    def buckets(self, path: Path) -> Buckets | None:
        """The calls that it takes; None: all that the network takes."""


@dataclass(frozen=True)
class OnnxMaker:
    """ONNX Runtime on the processor, in fp32: an engine is an exported graph, of free shapes."""

    folder: Path
    """The model's."""
    cache: EngineCache
    threads: int
    """That one operation may use."""
    name: str = "onnxruntime"
    device: str = "cpu"
    precision: Precision = "fp32"
    rows_are_their_own: bool = True
    adapters: AdapterSet | None = None

    def networks(self) -> Mapping[str, Network]:
        """All that :func:`engines.networks.runs_as_engine`."""
        named = networks_of(self.folder, self.adapters).items()
        return {name: network for name, network in named if runs_as_engine(network, self.adapters)}

    def find(self, name: str) -> Path | None:
        """The graph that the cache holds."""
        return find_graph(self.networks()[name], self.cache)

    def build(self, name: str, samples: Sequence[Sample]) -> Path:
        """The graph, exported if the cache lacks it; errors as :func:`engines.prepare.build_served`."""
        return build_served(self.networks()[name], self.cache, samples=samples)

    def discard(self, name: str, path: Path) -> None:  # noqa: ARG002 (there is one a network)
        """Take the graph out of the cache."""
        self.cache.discard(served_key(self.networks()[name]))

    def open(self, path: Path) -> Session:
        """Load and optimise it."""
        return OnnxSession(path, self.threads)

    def numerics(self, path: Path) -> str:
        """What the bytes of its output depend on."""
        return graph_numerics(path)

    def weight_bytes(self, name: str, path: Path) -> int:
        """Those of the file, or in 8 bits what they are restored to."""
        return file_bytes(path) if self.networks()[name].eight is None else restored_bytes(path)

    def buckets(self, path: Path) -> Buckets | None:  # noqa: ARG002 (every graph is the same in this)
        """It takes all calls."""
        return None
