"""What a job costs the service itself: ``python -m benchmarks.own_cost``. See README.md beside this file.

The API is the real one, over HTTP; the worker is one without networks, that claims a job when the bell rings, reports
progress twice, keeps one small picture and completes. The first figure is the processor time of both processes divided
by the jobs, without that of keeping pictures, which is shown beside it: most of that is the disk's. The second is the
time from a job's acceptance to its claim, one job at a time.
"""

from __future__ import annotations

import multiprocessing
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import uvicorn

from benchmarks.report import (
    RESULTS,
    Target,
    commit,
    console,
    load,
    machine,
    percentile,
    print_rows,
    print_targets,
    save,
)
from service.api.app import create_app
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import PROGRESS_EVERY_S, Bus, Event
from service.jobs.job import Result
from service.jobs.open import open_store
from service.settings import Settings, installed_models

CLIENTS = 8
BATCH = 16
WARM_UP = 50
"""Jobs that do not count."""
LEASE_S = 30.0
LIFE_TARGET_MS = 2.0
CLAIM_TARGET_MS = 10.0
BODY = {"prompt": "a lighthouse in a storm, waves against the rocks, dramatic light", "seed": 7}
PICTURE = bytes(range(256)) * 40
"""As many bytes as a small png."""


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _serve(settings: Settings, port: int, control: Connection) -> None:
    """The API, without a worker of its own. Says its processor time whenever it is asked."""
    store, bus = open_store(settings.store_url, settings.max_queued), Bus(settings.bus_address)
    artifacts = ArtifactStore(settings.artifacts_address)
    app = create_app(settings, store, bus, artifacts, installed_models(settings))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))

    def answer() -> None:
        while control.recv():
            control.send(_cpu_s())
        server.should_exit = True

    threading.Thread(target=answer, daemon=True).start()
    server.run()


def _work(settings: Settings, control: Connection) -> None:
    """A worker without networks. Says whenever it is asked: its processor time, what of it went into keeping pictures,
    the jobs it has done, and how long those waited that it has claimed since it was last asked."""
    store, bus = open_store(settings.store_url), Bus(settings.bus_address, PROGRESS_EVERY_S)
    artifacts, waits, keeping_s, done = ArtifactStore(settings.artifacts_address), list[float](), 0.0, 0
    while True:
        if control.poll():
            if not control.recv():
                break
            control.send((_cpu_s(), keeping_s, done, waits))
            waits = []
        leases = store.claim("null", BATCH, LEASE_S)
        now = time.time()
        waits += [now - lease.job.created_at for lease in leases]
        for lease in leases:
            for step in (7, 14):
                bus.publish(Event("progress", lease.job.id, step, 20))
            began = time.thread_time()
            name = artifacts.put(PICTURE + lease.job.id.encode())
            keeping_s += time.thread_time() - began
            store.complete(lease.id, [Result(content_sha256=name, media_type="image/png", seed=7, numerics_id="null")])
            bus.publish(Event("finished", lease.job.id))
            done += 1
        if not leases:
            bus.receive(0.2)


@contextmanager
def _service(folder: Path) -> Iterator[tuple[httpx.Client, Connection, Connection]]:
    """A client of the API, and what the API and the worker are asked through."""
    settings = Settings(data=folder, max_queued=100_000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    (api, apis), (worker, workers) = spawn.Pipe(), spawn.Pipe()
    processes = [
        spawn.Process(target=_serve, args=(settings, port, apis)),
        spawn.Process(target=_work, args=(settings, workers)),
    ]
    for process in processes:
        process.start()
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
        _wait_for(client, processes)
        yield client, api, worker
    for control, process in zip((api, worker), processes, strict=True):
        control.send(False)
        process.join()


def _wait_for(client: httpx.Client, processes: Sequence[BaseProcess]) -> None:
    while all(process.is_alive() for process in processes):
        try:
            client.get("/health/live")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError("the API or the worker ended before it began")


def _submit(client: httpx.Client) -> str:
    answer = client.post("/v1/jobs", json=BODY)
    answer.raise_for_status()
    return str(answer.json()["id"])


def _until_done(worker: Connection, jobs: int) -> None:
    while _asked(worker)[2] < jobs:  # the API would pay for being asked
        time.sleep(0.05)


def _asked(control: Connection) -> Any:
    control.send(True)
    return control.recv()


def main(
    jobs: Annotated[int, typer.Option(help="Lives of one round.", min=CLIENTS)] = 1000,
    single: Annotated[int, typer.Option(help="Jobs that come one at a time.", min=10)] = 100,
    rounds: Annotated[int, typer.Option(help="Rounds; the median counts.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "own_cost.json",
) -> None:
    """Take the processor time of job lives through HTTP, and the time from acceptance to claim."""
    lives: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, _service(Path(folder)) as (client, api, worker):
        for _ in range(WARM_UP):
            _submit(client)
        for number in range(rounds):
            _until_done(worker, WARM_UP + number * jobs)
            load_before, api_before, (worker_before, kept_before, *_) = load(), _asked(api), _asked(worker)
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(lambda _: _submit(client), range(jobs)))
            _until_done(worker, WARM_UP + (number + 1) * jobs)
            api_s, (worker_s, kept_s, *_) = _asked(api), _asked(worker)
            keeping_s = kept_s - kept_before
            spent_s = {"api": api_s - api_before, "worker": worker_s - worker_before - keeping_s, "keeping": keeping_s}
            per_job = {f"{name}_ms": round(seconds * 1e3 / jobs, 4) for name, seconds in spent_s.items()}
            lives.append({**per_job, "load_before": load_before})
        waits_load = load()
        for _ in range(single):
            _submit(client)
            time.sleep(0.03)
        *_, waits = _asked(worker)
    life_ms = statistics.median(life["api_ms"] + life["worker_ms"] for life in lives)
    p50_ms, p95_ms = (percentile(waits, share) * 1e3 for share in (50, 95))
    targets = [
        Target("CPU ms of a job's life, null network", life_ms, LIFE_TARGET_MS, at_least=False),
        Target("submit to claim, ms, p50", p50_ms, CLAIM_TARGET_MS, at_least=False),
    ]
    columns = ("api ms", "worker ms", "keeping ms", "load")
    print_rows("Lives", columns, [tuple(life.values()) for life in lives])
    console.print(f"submit to claim: p50 {p50_ms:.2f} ms, p95 {p95_ms:.2f} ms, load {waits_load}")
    print_targets(targets)
    save(out, "own_cost", {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "commit": commit(),
        "jobs": jobs,
        "lives": lives,
        "submit_to_claim_ms": {"p50": round(p50_ms, 3), "p95": round(p95_ms, 3), "load_before": waits_load},
        "targets": [target.to_json() for target in targets],
    })  # fmt: skip


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
