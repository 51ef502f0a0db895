"""Servers under test: each a process of its own, on a free port, with a fresh data folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import psutil  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import ROOT
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings

READY_TIMEOUT_S = 900.0
"""The first start of all exports the model's engines."""
STOP_TIMEOUT_S = 30.0
METRICS_LAG_S = 1.5
"""The worker's counts reach ``/metrics`` at most so late."""


@dataclass(frozen=True)
class Setup:
    """What all servers of one benchmark share."""

    model: Path
    threads: int
    engines: Path
    """Where compiled engines stay between runs; a server's other data is its own."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    ready_s: float
    """From the start of its process."""
    process: psutil.Process

    def cpu(self) -> dict[int, float]:
        """Processor seconds of every process of the server so far, by process id."""
        spent = {}
        for process in (self.process, *self.process.children(recursive=True)):
            times = process.cpu_times()
            spent[process.pid] = times.user + times.system
        return spent

    def counts(self) -> dict[tuple[str, str], float]:
        """What a Darkroom server has counted, by sample name and stage; nothing of other servers.

        Takes a moment: the worker's counts reach the server late.
        """
        time.sleep(METRICS_LAG_S)
        answer = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=30.0)
        if answer.status_code != httpx.codes.OK:
            return {}
        samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
        return {(sample.name, sample.labels.get("stage", "")): sample.value for sample in samples}


def cpu_between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Processor seconds between two readings of one server.

    Raises:
        RuntimeError: a process of the server came or went meanwhile, and its time is lost.
    """
    if before.keys() != after.keys():
        raise RuntimeError(f"the server's processes changed from {sorted(before)} to {sorted(after)} while measuring")
    return sum(after.values()) - sum(before.values())


@contextmanager
def start(name: str, setup: Setup) -> Iterator[Server]:
    """The server ``name`` until the end of the block: one of ``PEERS``, or a back end of ours.

    Raises:
        RuntimeError: it did not start; the message ends with its log's last lines.
    """
    with tempfile.TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        data, port = Path(folder), _free_port()
        log = data / "server.log"
        command, environment = PEERS.get(name, _darkroom)(name, setup, data, port)
        began = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            ready_s = _wait_until_ready(url, process, began, log)
            yield Server(url, ready_s, psutil.Process(process.pid))
        finally:
            _stop(process)


Command = tuple[Sequence[str], Mapping[str, str]]
"""Arguments and environment of a process."""


def _darkroom(backend: str, setup: Setup, data: Path, port: int) -> Command:
    settings = _settings(setup, data, port, "torch" if backend == "torch" else "onnxruntime")
    return [sys.executable, "-m", "service.cli", "serve"], settings.child_environment()


def _closed(_name: str, setup: Setup, data: Path, port: int) -> Command:
    settings = _settings(setup, data, port, "onnxruntime")
    return [sys.executable, "-m", "benchmarks.peers.closed_server"], settings.child_environment()


def _settings(setup: Setup, data: Path, port: int, backend: Literal["onnxruntime", "torch"]) -> Settings:
    setup.engines.mkdir(parents=True, exist_ok=True)
    (data / "engines").symlink_to(setup.engines.resolve(), target_is_directory=True)
    shipped = setup.model.resolve().parent == ZOO
    models = () if shipped else (setup.model.resolve(),)
    # No engine may be built or taken up while something is measured.
    return Settings(data=data, port=port, models=models, backend=backend, threads=setup.threads, engines="wait")


def _diffusers(name: str, setup: Setup, _data: Path, port: int) -> Command:
    width, height = ModelSpec.read(setup.model).sizes[0]
    options = {"--model": setup.model.resolve(), "--port": port, "--threads": setup.threads}
    command = [sys.executable, "-m", f"benchmarks.peers.{name}_server", "--size", str(width), str(height)]
    # The same OpenMP as ours: threads that sleep while they wait.
    openmp = {"OMP_NUM_THREADS": str(setup.threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    return [*command, *(str(word) for pair in options.items() for word in pair)], {**os.environ, **openmp}


PEERS: Mapping[str, Callable[[str, Setup, Path, int], Command]] = {
    "lock": _diffusers,
    "litserve": _diffusers,
    "closed": _closed,
}
"""Servers that ours is compared with; see the folder ``peers``."""


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], began: float, log: Path) -> float:
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.perf_counter() - began < READY_TIMEOUT_S and process.poll() is None:
            try:
                if client.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                    return time.perf_counter() - began
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.05)
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise RuntimeError(f"the server did not become ready (exit status {process.poll()}):\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server with its children, gently at first."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)[1]:
        child.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
