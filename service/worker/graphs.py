"""CUDA graphs of denoising networks: a step is hundreds of launches, and a graph is one.

A call is filled up to its bucket of lanes with copies of the last one, copied into buffers that stay, and replayed. The
first call of a shape runs as it is, and the second is captured: what comes once is not worth it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.families.row import Denoiser

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16)
"""Lanes of a captured call. A larger one runs as it is: its launches cost next to nothing beside its work."""
MAX_SHAPES = 64
MAX_BYTES = 8 * 2**30
"""What graphs may hold of the device's memory. They share one pool, since no two run at the same time, so this is about
what the largest needs on its way and not their sum."""

Inputs = tuple[Tensor, ...]


class Graph(Protocol):
    """One captured call."""

    inputs: Inputs
    """Buffers, to be filled before a replay."""
    bytes: int
    """What it took of the device's memory."""

    def replay(self) -> Tensor:
        """The output, in a buffer that the next replay overwrites."""


Capture = Callable[[Denoiser, Inputs], Graph]


@dataclass(frozen=True)
class _Key:
    identity: str
    name: str
    shapes: tuple[tuple[object, ...], ...]


@dataclass
class _Seen:
    """A shape that was called before."""

    version: str
    """The network as it lay in memory then: a graph holds the addresses of weights."""
    graph: Graph | None = None
    refused: bool = False
    """It cannot be captured, or not within the limit."""


class Graphs:
    """The graphs of one device; of more shapes than are kept, those used longest ago make room. One thread uses it."""

    def __init__(self, capture: Capture, max_shapes: int = MAX_SHAPES, max_bytes: int = MAX_BYTES) -> None:
        """
        Args:
            capture: makes a graph of a call.
            max_shapes: shapes that are remembered.
            max_bytes: memory that all graphs may hold together.
        """
        self._capture, self._max_shapes, self._max_bytes = capture, max_shapes, max_bytes
        self._seen: OrderedDict[_Key, _Seen] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """What the graphs hold of the device's memory."""
        return sum(seen.graph.bytes for seen in self._seen.values() if seen.graph is not None)

    def over(self, denoisers: Mapping[str, Denoiser], identity: str, version: str) -> Mapping[str, Denoiser]:
        """The same networks, replayed where they were captured.

        Args:
            denoisers: by name.
            identity: of their weights.
            version: of their place in memory: another one after every load.
        """

        def run(name: str, inputs: Inputs) -> Tensor:
            lanes = len(inputs[0])
            bucket = next((size for size in BUCKETS if size >= lanes), None)
            if bucket is None:
                return denoisers[name](*inputs)
            filled = tuple(_filled(tensor, bucket) for tensor in inputs)
            key = _Key(identity, name, tuple((*tensor.shape, tensor.dtype) for tensor in filled))
            graph = self._graph(key, version, denoisers[name], filled)
            if graph is None:
                return denoisers[name](*filled)[:lanes]
            for buffer, tensor in zip(graph.inputs, filled, strict=True):
                buffer.copy_(tensor)
            return graph.replay()[:lanes].clone()

        return _Rerouted(denoisers, run)

    def shrink(self) -> None:
        """Drop all graphs, and keep half as much from now on: something else needs the memory."""
        self._max_bytes //= 2
        self._clear()

    def _graph(self, key: _Key, version: str, network: Denoiser, inputs: Inputs) -> Graph | None:
        """The graph of a call that was made before, captured now if it was made once; None for one to run as it is."""
        seen = self._seen.get(key)
        if seen is None or seen.version != version:
            self._seen[key] = _Seen(version)
            self._seen.move_to_end(key)
            if len(self._seen) > self._max_shapes:
                self._seen.popitem(last=False)
            return None
        self._seen.move_to_end(key)
        if seen.graph is None and not seen.refused:
            try:
                seen.graph = self._captured(network, inputs)
            except RuntimeError as error:  # what cannot be captured, and memory that is too small
                seen.refused = True
                said = {"network": key.identity, "lanes": key.shapes[0][0], "error": str(error)}
                logger.warning("no CUDA graph", extra=said)
        return seen.graph

    def _captured(self, network: Denoiser, inputs: Inputs) -> Graph:
        """
        Raises:
            RuntimeError: it cannot be captured, or takes more than all graphs may.
        """
        graph = self._capture(network, inputs)
        if graph.bytes > self._max_bytes:
            raise RuntimeError(f"the graph holds {graph.bytes} bytes, and at most {self._max_bytes} are allowed")
        if self.held_bytes + graph.bytes > self._max_bytes:
            self._clear()
        return graph

    def _clear(self) -> None:
        for seen in self._seen.values():
            seen.graph = None


class _Rerouted(Mapping[str, Denoiser]):
    """Networks by name whose calls go elsewhere."""

    def __init__(self, networks: Mapping[str, Denoiser], run: Callable[[str, Inputs], Tensor]) -> None:
        self._networks, self._run = networks, run

    def __getitem__(self, name: str) -> Denoiser:
        if name not in self._networks:
            raise KeyError(name)
        return lambda *inputs: self._run(name, inputs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._networks)

    def __len__(self) -> int:
        return len(self._networks)


class CudaCapture:
    """Captures calls on the current device, all in one pool of memory."""

    def __init__(self) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, network: Denoiser, inputs: Inputs) -> Graph:
        """
        Raises:
            RuntimeError: the call does something that cannot be captured, or the memory is too small.
        """
        buffers = tuple(tensor.clone() for tensor in inputs)
        # Libraries set themselves up at their first call on a stream, which must not happen while it is captured.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            network(*buffers)
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before, graph = torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
        # Networks are loaded by another thread meanwhile, which allocates; that is not to end the capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            output = network(*buffers)
        return _CudaGraph(buffers, max(0, torch.cuda.memory_reserved() - before), graph, output)


@dataclass
class _CudaGraph:
    inputs: Inputs
    bytes: int
    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


def _filled(tensor: Tensor, lanes: int) -> Tensor:
    """With copies of its last lane."""
    missing = lanes - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor
