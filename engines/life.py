"""The life of one network's engine: torch serves at once, the engine takes over when it was built and accepted, and
torch again when it fails. No threads, no clock: whoever owns it calls :meth:`EngineLife.look` now and then.

``network`` is what *new* rows take. Rows in flight keep the one that they began with, and finish under its numerics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engines.background import Done
from engines.cache import EngineCache
from engines.networks import networks_of
from engines.precision import TOLERANCE, Precision
from engines.prepare import build_graph
from engines.session import OnnxSession
from engines.verdict import Network, Verdict, judge

logger = logging.getLogger(__name__)

State = Literal["building", "engine", "rejected", "dropped"]
"""``building``: the engine is not there yet; ``rejected``: it was not built or not accepted; ``dropped``: it failed in
service. Torch serves in all but ``engine``."""


@dataclass(frozen=True)
class Built:
    """An engine that lies in the cache, and what came of its comparison with torch."""

    path: Path
    verdict: Verdict


class Build(Protocol):
    """A build under way; :class:`engines.background.Background`."""

    def poll(self) -> Done[Built] | None: ...


class EngineLife:
    """One network, on torch or on its engine."""

    def __init__(self, torch_network: Network, build: Build, open_engine: Callable[[Path], Network]) -> None:
        """
        Args:
            torch_network: serves until the engine does.
            build: of the engine, already begun.
            open_engine: makes a session of the file that was built.
        """
        self._torch, self._build, self._open = torch_network, build, open_engine
        self._engine: Network | None = None
        self.state: State = "building"
        self.reason = ""
        """Why torch serves for good; empty otherwise."""
        self.build_s = 0.0
        self.verdict: Verdict | None = None

    @property
    def network(self) -> Network:
        """What a new row runs on."""
        return self._torch if self._engine is None else self._engine

    def look(self) -> bool:
        """Take the engine over once it is built and accepted; whether the state has changed."""
        if self.state != "building" or (done := self._build.poll()) is None:
            return False
        self.build_s = done.seconds
        if done.value is None:
            self._fall("rejected", done.fault)
            return True
        self.verdict = done.value.verdict
        if not self.verdict.accepted:
            self._fall("rejected", self.verdict.reason)
            return True
        try:
            self._engine = self._open(done.value.path)
        except Exception as error:  # whatever a back end raises: torch goes on
            self._fall("rejected", f"{type(error).__name__}: {error}")
            return True
        self.state = "engine"
        logger.info("engine in service", extra={"path": str(done.value.path), "seconds": round(done.seconds, 1)})
        return True

    def fail(self, error: Exception) -> None:
        """The engine raised while it served: it is dropped, new rows run on torch."""
        self._engine = None
        self._fall("dropped", f"{type(error).__name__}: {error}")

    def _fall(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        logger.warning("engine %s", state, extra={"reason": reason})


def build_and_judge(
    folder: Path, name: str, cache_root: Path, precision: Precision, samples: list[tuple[NDArray[np.generic], ...]],
    limit_s: float,
) -> Built:  # fmt: skip
    """Work for :class:`engines.background.Background`: export one network of a model folder for ONNX Runtime, and
    compare it with torch on real inputs.

    Args:
        folder: the model's.
        name: the network's, as in :func:`engines.networks.networks_of`.
        cache_root: of the engine cache.
        precision: of the graph.
        samples: inputs that occurred.
        limit_s: how long the engine may take for one of them.

    Raises:
        ValueError: the folder has no such network, or a file is missing.
        RuntimeError: the exported network does not compute what torch does.
    """
    torch.set_num_threads(1)
    networks = networks_of(folder)
    if name not in networks:
        raise ValueError(f"network {name!r} is none of {folder.name}, which has {', '.join(networks)}")
    path = build_graph(networks[name], EngineCache(cache_root), precision)
    session = OnnxSession(path, threads=1)
    tensors = [tuple(torch.from_numpy(array) for array in sample) for sample in samples]
    return Built(path, judge(session, networks[name].load(), tensors, TOLERANCE[precision], limit_s, True))
