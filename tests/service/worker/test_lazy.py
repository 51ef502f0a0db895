"""Networks that come and go: loaded once, dropped for good, shared by identity; failures that stand for a while."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from service.worker import lazy
from service.worker.lazy import (
    FAILED_FOR_S,
    FIRST_GUESS_BYTES_PER_S,
    LazyConditioner,
    LazyDenoisers,
    LazyNetwork,
    LoadFailed,
    loaded_together,
)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(lazy.time, "time", lambda: self.now)


class Weights:
    """Reads a network, or fails."""

    def __init__(self) -> None:
        self.reads, self.error = 0, ""

    def __call__(self) -> nn.Module:
        self.reads += 1
        if self.error:
            raise ValueError(self.error)
        return nn.Linear(2, 2)


def make(weights: Weights, identity: str = "unet-1") -> LazyNetwork[nn.Module]:
    return LazyNetwork(identity, 24, weights)


def test_it_is_loaded_when_it_is_used_and_then_kept() -> None:
    weights = Weights()
    network = make(weights)
    assert weights.reads == 0 and network.home.since is None
    assert network.home.load_s == 24 / FIRST_GUESS_BYTES_PER_S
    assert network.get() is network.get() and weights.reads == 1
    home = network.home
    assert home.since is not None and home.bytes == 24 and home.load_s == home.switch_s < 10


def test_what_is_dropped_is_gone_and_comes_back() -> None:
    weights = Weights()
    network = make(weights)
    seen = weakref.ref(network.get())
    gc.collect()
    assert seen() is not None
    network.drop()
    gc.collect()
    assert seen() is None and network.home.since is None
    network.get()
    assert weights.reads == 2


def test_a_load_is_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, network = Clock(monkeypatch), make(Weights())
    network.load()
    assert network.home.since == 100.0 and not network.home.used
    clock.now = 101.0
    network.get()
    assert network.home.used


def test_models_share_a_network_of_one_identity() -> None:
    first, second = Weights(), Weights()
    ours, theirs = make(first), make(second)
    theirs.share(ours)
    assert theirs.get() is ours.get() and (first.reads, second.reads) == (0, 1)
    ours.drop()
    assert theirs.home.since is None


def test_a_derived_network_is_read_on_its_own_and_changed_after_every_load() -> None:
    weights, changed = Weights(), list[nn.Module]()
    plain = make(weights)
    derived = plain.derived("0123456789abcdef-and-more", changed.append)
    assert derived.identity == "unet-1+0123456789abcdef" and derived.size_bytes == plain.size_bytes
    assert derived.get() is not plain.get() and weights.reads == 2
    derived.drop()
    assert changed == [changed[0], derived.get()] and plain.get() not in changed


def test_two_threads_load_it_once() -> None:
    weights, barrier, got = Weights(), threading.Barrier(2), []
    network = make(weights)

    def use() -> None:
        barrier.wait(10)
        got.append(network.get())

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert weights.reads == 1 and got[0] is got[1]


def test_a_failed_load_stands_for_a_while_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, weights = Clock(monkeypatch), Weights()
    weights.error = "no such file"
    network = make(weights)
    for _ in range(2):
        with pytest.raises(LoadFailed, match="no such file"):
            network.get()
    assert weights.reads == 1, "whoever comes a moment later is told the same"
    assert network.home.since is not None and network.home.bytes == 0, "and nobody waits for a load"
    clock.now += FAILED_FOR_S
    assert network.home.since is None
    weights.error = ""
    network.get()
    assert network.home.since == clock.now


def test_memory_that_others_left_is_freed_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    freed, errors = list[bool](), [torch.OutOfMemoryError("CUDA out of memory")]
    monkeypatch.setattr(lazy, "free_what_can_be_freed", lambda: freed.append(True))

    def read() -> nn.Module:
        if errors:
            raise errors.pop()
        return nn.Linear(2, 2)

    LazyNetwork("unet-1", 24, read).get()
    assert freed == [True]
    errors.extend([torch.OutOfMemoryError("CUDA out of memory")] * 2)
    with pytest.raises(LoadFailed, match="out of memory"):
        LazyNetwork("unet-2", 24, read).get()


def test_weights_are_ordinary_tensors_wherever_they_are_asked_for() -> None:
    with torch.inference_mode():
        network = make(Weights())
        assert not network.get().weight.is_inference()
        assert nn.Linear(2, 2).weight.is_inference(), "the control"


def test_loaded_together_they_have_one_tenure_and_a_failure_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, good, bad = Clock(monkeypatch), Weights(), Weights()
    bad.error = "no such file"
    networks = [make(good, "a"), make(bad, "b"), make(good, "c")]
    clock.now = 200.0
    seconds = loaded_together(networks)
    homes = [network.home for network in networks]
    assert [home.bytes for home in homes] == [24, 0, 24]
    assert homes[0].switch_s == homes[2].switch_s == seconds >= homes[0].load_s
    assert homes[0].since == homes[2].since == 200.0


def test_variants_are_looked_up_in_one_network() -> None:
    networks = {"transformer": nn.Linear(2, 2), "transformer/skip-layers": nn.Linear(2, 2)}
    denoisers = LazyDenoisers(LazyNetwork("t", 1, lambda: networks))
    assert list(denoisers) == list(networks) and len(denoisers) == 2
    assert denoisers["transformer"] is networks["transformer"] and "refiner" not in denoisers


def test_a_conditioner_is_called_like_itself() -> None:
    class Echo:
        def encode(self, *arguments: object, **options: object) -> tuple[object, ...]:
            return arguments, options

        encode_pair = encode

    conditioner = LazyConditioner(LazyNetwork("c", 1, Echo))
    assert conditioner.encode("a", width=2) == conditioner.encode_pair("a", width=2) == (("a",), {"width": 2})
