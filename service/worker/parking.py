"""The machine's memory as the home of networks that had to leave a GPU.

It is page-locked, so that a network is back at the speed of the bus and not of a disk.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Protocol

import torch
from torch import Tensor, nn

from service.worker.room import free_what_can_be_freed

logger = logging.getLogger(__name__)


class Parkable(Protocol):
    """A network that can leave: :class:`service.worker.lazy.LazyNetwork`."""

    identity: str

    @property
    def parked_bytes(self) -> int: ...

    def park(self) -> None: ...

    def drop(self) -> None: ...


class Parking:
    """Networks in the machine's memory, up to a limit. Whoever came first makes room."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parked: OrderedDict[str, Parkable] = OrderedDict()

    def take(self, networks: Sequence[Parkable]) -> None:
        """Bring networks here that have left their device, or drop those that have no room."""
        for network in networks:
            self._take(network)
        free_what_can_be_freed()

    def _take(self, network: Parkable) -> None:
        need = network.parked_bytes
        self._parked.pop(network.identity, None)
        if need > self._limit_bytes:
            network.drop()
            return
        self._parked = OrderedDict((name, other) for name, other in self._parked.items() if other.parked_bytes)
        while need + sum(other.parked_bytes for other in self._parked.values()) > self._limit_bytes:
            _, oldest = self._parked.popitem(last=False)
            oldest.drop()
        try:
            network.park()
        except Exception as error:
            logger.warning("a network cannot be parked", extra={"network": network.identity, "error": str(error)})
            network.drop()
            return
        self._parked[network.identity] = network


def modules_of(network: object) -> tuple[nn.Module, ...]:
    """The modules of a network in any of its forms: itself one, by name, behind a method of one, or a conditioner."""
    if isinstance(network, nn.Module):
        return (network,)
    if isinstance(network, Mapping):
        return tuple(module for each in network.values() for module in modules_of(each))
    if isinstance(network, MethodType):
        return modules_of(network.__self__)
    networks: tuple[nn.Module, ...] = getattr(network, "networks", ())
    return networks


def host_bytes(modules: Iterable[nn.Module]) -> int:
    """What the weights take in page-locked memory, whose blocks are powers of two."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in _tensors(modules)]
    return sum(1 << (size - 1).bit_length() for size in sizes if size)


def to_host(modules: Iterable[nn.Module]) -> torch.device | None:
    """Move weights to page-locked memory, in their order there. Returns where they were; None where they were in the
    machine's memory already."""
    origin = None

    def moved(tensor: Tensor) -> Tensor:
        nonlocal origin
        if tensor.device.type == "cpu":
            return tensor
        origin = tensor.device
        # The copy is waited for: what it reads is free for others as soon as this returns.
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)

    _put(modules, moved)
    return origin


def to_device(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move weights to a device, in their order there. They are there when the current stream gets so far."""
    _put(modules, lambda tensor: tensor.to(device, non_blocking=True))


def _put(modules: Iterable[nn.Module], move: Callable[[Tensor], Tensor]) -> None:
    for module in modules:
        module._apply(move)  # what Module.to is made of, which does not know page-locked memory


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Every weight and buffer once, however many modules share it."""
    seen: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
