"""Networks compiled by OpenVINO as the engines of one model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.buckets import Buckets
from engines.cache import EngineCache, EngineKey
from engines.call import Session, file_bytes, processor
from engines.networks import Network, networks_of, runs_as_engine
from engines.openvino_session import BLOB_FILE, OpenVinoSession, compile_graph, openvino_numerics, openvino_version
from engines.precision import TOLERANCE, Precision
from engines.prepare import build_graph, graph_key
from engines.verdict import Sample
from engines.verify import compare, expected_outputs

if TYPE_CHECKING:
    from models.adapters.whole import AdapterSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenVinoMaker:
    """OpenVINO in fp32: an engine is an exported graph of free shapes, compiled for this processor."""

    folder: Path
    """The model's."""
    cache: EngineCache
    threads: int
    """That one operation may use."""
    name: str = "openvino"
    device: str = "cpu"
    precision: Precision = "fp32"
    rows_are_their_own: bool = True
    adapters: AdapterSet | None = None

    def networks(self) -> Mapping[str, Network]:
        """All that :func:`engines.networks.runs_as_engine`, in fp32 whatever the card asks for."""
        named = networks_of(self.folder, self.adapters).items()
        return {name: replace(network, eight=None) for name, network in named if runs_as_engine(network, self.adapters)}

    def find(self, name: str) -> Path | None:
        """The compiled network that the cache holds; errors as :func:`openvino_key`."""
        entry = self.cache.find(openvino_key(self.networks()[name]))
        return None if entry is None else entry / BLOB_FILE

    def build(self, name: str, samples: Sequence[Sample]) -> Path:  # noqa: ARG002 (it takes calls of every shape)
        """The compiled network, made if the cache lacks it; errors as :func:`build_openvino`."""
        return build_openvino(self.networks()[name], self.cache)

    def discard(self, name: str, path: Path) -> None:  # noqa: ARG002 (there is one a network)
        """Take it out of the cache."""
        self.cache.discard(openvino_key(self.networks()[name]))

    def open(self, path: Path) -> Session:
        """Load it."""
        return OpenVinoSession(path, self.threads)

    def numerics(self, path: Path) -> str:
        """What the bytes of its output depend on."""
        return openvino_numerics(path)

    def weight_bytes(self, name: str, path: Path) -> int:  # noqa: ARG002 (every one is loaded as it is)
        """Those of the file."""
        return file_bytes(path)

    def buckets(self, path: Path) -> Buckets | None:  # noqa: ARG002 (every one is the same in this)
        """It takes all calls."""
        return None


def build_openvino(network: Network, cache: EngineCache) -> Path:
    """What :class:`engines.openvino_session.OpenVinoSession` opens, made first if the cache lacks it: the graph is
    exported, compiled, and compared with torch.

    Raises:
        ValueError: OpenVINO is not installed, or a file of the model is missing.
        RuntimeError: the network cannot be exported or compiled, or what was compiled does not compute what torch does.
    """

    def build_into(folder: Path) -> None:
        graph = build_graph(network, cache)
        logger.info("compiling a network", extra={"network": network.name, "backend": "openvino"})
        session = OpenVinoSession(compile_graph(graph, folder), threads=1)
        compare(session, expected_outputs(network.load(), network.signature), TOLERANCE["fp32"])

    return cache.get_or_build(openvino_key(network), build_into) / BLOB_FILE


def openvino_key(network: Network) -> EngineKey:
    """What a compiled network depends on: its graph, the version of OpenVINO and this processor.

    Raises:
        ValueError: OpenVINO is not installed, or a file of the network is missing.
    """
    key = graph_key(network)
    return replace(
        key,
        format=f"{key.format} openvino",
        libraries=f"{key.libraries} openvino-{openvino_version()}",
        architecture=processor(),
    )
