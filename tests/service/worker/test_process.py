"""The worker's process up to its first turn; whole ones are killed, stopped and replaced in tests/e2e."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import Unavailable
from service.jobs.bus import Bus
from service.jobs.open import open_store
from service.jobs.store import JobStore
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.worker import process
from service.worker.process import Stop, open_when_there, run_worker


@pytest.fixture
def stop() -> Iterator[Stop]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Stop()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_waits_for_a_store_that_is_away(stop: Stop, tmp_path: Path) -> None:
    faults, metrics = [Unavailable("not yet"), Unavailable("not yet")], WorkerMetrics()

    def open_it() -> JobStore:
        if faults:
            raise faults.pop()
        return open_store(f"sqlite:///{tmp_path}/jobs.db")

    opened = open_when_there(open_it, metrics, stop)
    assert opened is not None and not faults
    opened.close()
    assert metrics.registry.get_sample_value("darkroom_store_unavailable_total", {"verb": "open"}) == 2


def test_a_signal_ends_the_wait(stop: Stop) -> None:
    def open_it() -> JobStore:
        raise Unavailable("never")

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    assert open_when_there(open_it, WorkerMetrics(), stop) is None and stop.asked
    assert 0.1 < time.monotonic() - began < 5


def test_a_worker_without_models_starts_turns_and_stops(
    stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.settings.ZOO", tmp_path)
    monkeypatch.setattr(process, "METRICS_EVERY_S", 0.0)
    settings = Settings(data=tmp_path / "data", threads=1)
    opened: list[tuple[object, ...]] = []
    monkeypatch.setattr(process, "Bus", lambda *arguments: opened.append(arguments) or Bus(*arguments))

    def end_it() -> None:
        while not settings.worker_metrics_path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_it, daemon=True)
    thread.start()
    run_worker(settings)
    thread.join()
    assert '"stopping"' in settings.worker_status_path.read_text()
    assert opened == [(settings.bus_address, 0.5)], "reports of one job on the bus: two a second"
    assert not list(Path(settings.bus_address).iterdir()), "it has left the bus"
    with closing(open_store(settings.store_url)) as store:
        assert store.stats().queued == 0


def test_what_ran_on_a_gpu_and_what_it_took_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = WorkerMetrics()
    monkeypatch.setattr(process, "chosen", lambda: (("geglu", "torch"), ("geglu", "triton")))
    monkeypatch.setattr(process.torch.cuda, "is_initialized", lambda: True)
    for name, size in (("memory_allocated", 1), ("max_memory_allocated", 2), ("memory_reserved", 3)):
        monkeypatch.setattr(process.torch.cuda, name, lambda size=size: size)
    monkeypatch.setattr(process.torch.cuda, "mem_get_info", lambda: (0, 4))
    process._measure_device(metrics)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"darkroom_{name}", labels)

    kinds = ("allocated", "peak", "reserved", "whole")
    assert [value("device_memory_bytes", kind=kind) for kind in kinds] == [1, 2, 3, 4]
    assert [value("kernels", op="geglu", implementation=name) for name in ("torch", "triton")] == [1, 1]
    assert value("kernels", op="blend", implementation="torch") is None
