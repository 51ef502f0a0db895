"""What the API process costs by itself: ``python -m benchmarks.api``. See README.md beside this file.

``darkroom serve`` without a worker of its own, in a process of its own; jobs are ended by a thread of this process.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import psutil  # type: ignore[import-untyped]
import typer

from benchmarks.report import RESULTS, ROOT, Target, console, facts, load, print_targets, save
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import PROGRESS_EVERY_S, Bus, Event
from service.jobs.job import Result
from service.jobs.open import open_store
from service.settings import Settings

START_TARGET_S = 2.0
REQUESTS_TARGET_MS = 1.0
STREAMS_TARGET = 0.01
STREAMS = 200
POLLS = 2
WARM_UP = 50
START_TIMEOUT_S = 60.0
BODY = {"prompt": "a lighthouse in a storm, waves against the rocks, dramatic light", "seed": 7}
PICTURE = bytes(range(256)) * 40
"""As many bytes as a small png."""


@dataclass(frozen=True)
class Api:
    """A server that is alive."""

    client: httpx.Client
    port: int
    process: psutil.Process
    start_s: float

    def cpu_s(self) -> float:
        """Processor time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serve(folder: Path) -> Iterator[Api]:
    """A server without a worker on a free port; it keeps everything in ``folder``."""
    environment = {"DARKROOM_WORKERS": "0", "DARKROOM_MAX_QUEUED": "100000"}
    with _served("service.cli", "serve", "--data", str(folder), **environment) as api:
        yield api


@contextmanager
def bare() -> Iterator[Api]:
    """The same framework on the same server, with nothing to do."""
    with _served("uvicorn", "benchmarks.peers.bare:app", "--no-access-log") as api:
        yield api


@contextmanager
def _served(*module: str, **environment: str) -> Iterator[Api]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *module, "--port", str(port)]
    began = time.monotonic()
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            _wait_for(client, began + START_TIMEOUT_S)
            yield Api(client, port, psutil.Process(server.pid), time.monotonic() - began)
    finally:
        server.terminate()
        server.wait()


@contextmanager
def null_worker(folder: Path) -> Iterator[None]:
    """Claims every job, reports on it twice and completes it with bytes that are no picture."""
    settings, stopping = Settings(data=folder), threading.Event()
    artifacts = ArtifactStore(settings.artifacts_address)

    def work() -> None:
        while not stopping.is_set():
            leases = store.claim("null", 16, 30.0)
            for lease in leases:
                for step in (7, 14):
                    bus.publish(Event("progress", lease.job.id, step, 20))
                name = artifacts.put(PICTURE)
                store.complete(lease.id, [Result(content_sha256=name, media_type="image/png", seed=7, numerics_id="-")])
                bus.publish(Event("finished", lease.job.id))
            if not leases:
                bus.receive(0.05)

    with (
        closing(open_store(settings.store_url)) as store,
        closing(Bus(settings.bus_address, PROGRESS_EVERY_S)) as bus,
    ):
        thread = threading.Thread(target=work)
        thread.start()
        yield
        stopping.set()
        thread.join()


def requests_ms(api: Api, lives: int) -> float:
    """Processor time of the server for a job's submission and two looks at it."""
    before = api.cpu_s()
    for _ in range(lives):
        job = api.client.post("/v1/jobs", json=BODY).raise_for_status().json()
        for _ in range(POLLS):
            api.client.get(f"/v1/jobs/{job['id']}").raise_for_status()
    return (api.cpu_s() - before) * 1e3 / lives


def idle_streams(api: Api, seconds: float) -> float:
    """The share of a core that streams take which have nothing to say."""
    job = api.client.post("/v1/jobs", json=BODY).raise_for_status().json()
    with ExitStack() as streams:
        for _ in range(STREAMS):
            stream = streams.enter_context(socket.create_connection(("127.0.0.1", api.port)))
            stream.sendall(f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            stream.recv(16)
        time.sleep(2.0)  # until the last of them has settled
        before, began = api.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (api.cpu_s() - before) / (time.monotonic() - began)


def _wait_for(client: httpx.Client, until: float) -> None:
    while True:
        try:
            client.get("/health/live")
            return
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def main(
    lives: Annotated[int, typer.Option(help="Jobs of one round.", min=10)] = 500,
    rounds: Annotated[int, typer.Option(help="Rounds and starts; the medians count.", min=1)] = 5,
    idle_s: Annotated[float, typer.Option(help="How long the idle streams are watched.", min=1.0)] = 20.0,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "api.json",
) -> None:
    """Take start, processor time of requests, and that of idle streams."""
    starts, spent, floor = list[float](), list[float](), list[float]()
    about, began_at = facts(), load()
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds - 1):
            with serve(Path(name) / str(number)) as api:
                starts.append(api.start_s)
        folder = Path(name) / "last"
        with serve(folder) as api:
            starts.append(api.start_s)
            with null_worker(folder), bare() as other:
                requests_ms(api, WARM_UP), requests_ms(other, WARM_UP)  # not counted
                for _ in range(rounds):  # in turns, since the machine is not equally busy all the time
                    spent.append(requests_ms(api, lives))
                    floor.append(requests_ms(other, lives))
            share = idle_streams(api, idle_s)
    targets = [
        Target("start of the API alone, s", statistics.median(starts), START_TARGET_S, at_least=False),
        Target("CPU ms of a submit and two polls", statistics.median(spent), REQUESTS_TARGET_MS, at_least=False),
        Target(f"share of a core, {STREAMS} idle streams", share, STREAMS_TARGET, at_least=False),
    ]
    print_targets(targets)
    console.print(
        f"starts {starts}, requests {spent}, of the bare framework {floor}, load {began_at} before and {load()} after"
    )
    save(out, "api", {
        **about,
        "starts_s": [round(seconds, 3) for seconds in starts],
        "requests_ms": [round(ms, 4) for ms in spent],
        "bare_framework_ms": [round(ms, 4) for ms in floor],
        "idle_streams_share": round(share, 5),
        "targets": [target.to_json() for target in targets],
    })  # fmt: skip


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
