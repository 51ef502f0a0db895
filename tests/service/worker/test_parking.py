"""Networks that leave a GPU for the machine's memory: which have room there, and that they come back as they were."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from service.worker import parking
from service.worker.lazy import LazyNetwork
from service.worker.loaded import LoadedModel
from service.worker.parking import Parking, host_bytes, modules_of
from service.worker.residency import Residency


class Reads:
    """Reads a network of 64 and 16 bytes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> nn.Module:
        self.count += 1
        torch.manual_seed(0)
        return nn.Linear(4, 4)


def parked(name: str, taken_by: Parking, reads: Reads | None = None) -> LazyNetwork[nn.Module]:
    network = LazyNetwork(name, 80, reads or Reads(), modules=modules_of)
    network.get()
    network.leave()
    assert network.home.since is None, "it is gone at once for whoever looks"
    taken_by.take([network])
    return network


def test_a_parked_network_comes_back_without_being_read() -> None:
    reads = Reads()
    network = parked("a", Parking(80), reads)
    assert network.parked_bytes == 80 and network.version == "a/1"
    far = LazyNetwork("b", 80, reads).home.load_s
    assert network.home.load_s < far, "and is cheaper to have than one on disk"
    torch.manual_seed(0)
    assert torch.equal(network.get().weight, nn.Linear(4, 4).weight)
    assert reads.count == 1 and network.parked_bytes == 0 and network.version == "a/2"


def test_what_came_first_makes_room() -> None:
    place = Parking(160)
    first, second, third = (parked(name, place) for name in ("a", "b", "c"))
    assert [network.parked_bytes for network in (first, second, third)] == [0, 80, 80]
    second.get()
    fourth = parked("d", place)
    assert third.parked_bytes == fourth.parked_bytes == 80, "what is back on the device takes no room"


def test_without_room_it_is_read_again() -> None:
    reads = Reads()
    network = parked("a", Parking(79), reads)
    assert network.parked_bytes == 0
    network.get()
    assert reads.count == 2


def test_memory_that_cannot_be_locked_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    reads = Reads()
    monkeypatch.setattr("service.worker.lazy.to_host", fail)
    network = parked("a", Parking(80), reads)
    network.get()
    assert network.parked_bytes == 0 and reads.count == 2


def test_an_engine_is_dropped() -> None:
    engine = LazyNetwork("e", 80, Reads())
    engine.get()
    engine.leave()
    assert engine.parked_bytes == 0 and engine.home.since is None


def test_one_that_was_wanted_again_at_once_stays() -> None:
    network, place = LazyNetwork("a", 80, Reads(), modules=modules_of), Parking(80)
    kept = network.get()
    network.leave()
    assert network.get() is kept
    place.take([network])
    assert network.home.since is not None and network.parked_bytes == 0


def test_the_modules_of_every_form() -> None:
    class Conditioner:
        def __init__(self, *networks: nn.Module) -> None:
            self.networks = networks

    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    assert modules_of(first) == modules_of(first.forward) == (first,)
    assert modules_of({"a": first, "b": second}) == modules_of(Conditioner(first, second)) == (first, second)
    assert modules_of(object()) == ()


def test_page_locked_blocks_are_powers_of_two_and_shared_weights_count_once() -> None:
    shared = nn.Linear(5, 5, bias=False)
    assert host_bytes([shared, nn.Sequential(shared)]) == 128
    with_buffer = nn.BatchNorm1d(4, affine=False)
    assert host_bytes([with_buffer]) == 16 + 16 + 8


def test_weights_keep_their_order_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out and back, of a device without memory: only the numbers are not there."""
    conv = nn.Conv2d(3, 4, 3, device="meta").to(memory_format=torch.channels_last)
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, device, **_: empty(tensor, device=device))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *_, **__: self)
    strides, origin = conv.weight.stride(), parking.to_host([conv])
    assert origin == torch.device("meta") and conv.weight.device.type == "cpu" and conv.weight.stride() == strides
    parking.to_device([conv], torch.device("meta"))
    assert conv.weight.device.type == "meta" and conv.weight.stride() == strides
    assert parking.to_host([nn.Linear(2, 2)]) is None


def test_what_residency_evicts_is_parked(loaded: LoadedModel) -> None:
    reads, models = {"a": Reads(), "b": Reads()}, dict[str, LoadedModel]()
    for name, read in reads.items():
        models[name] = replace(loaded, networks={"denoiser": LazyNetwork(name, 80, read, modules=modules_of)})
    specs: Any = {name: name for name in models}
    with closing(Residency(specs, lambda name: models[str(name)], 100, parking=Parking(200))) as residency:
        for name in models:
            residency.request(name).result(60)

        def bring(name: str, instead: str) -> None:
            residency.start([name], [instead])
            while residency.memory.loading:
                time.sleep(0.001)
            assert residency.memory.holds([name]) and not residency.memory.holds([instead])

        bring("b", "a")
        bring("a", "b")
    assert {name: read.count for name, read in reads.items()} == {"a": 1, "b": 1}
