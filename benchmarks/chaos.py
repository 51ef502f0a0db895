"""What is killed, stopped, filled and locked must cost no job: ``python -m benchmarks.chaos --seed N``.

A server with its worker is put under load and then under faults, in an order that the seed decides. Every job that was
acknowledged must end, once, with the pixels of an undisturbed run. See README.md beside this file.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.faults import Faults
from benchmarks.load import CONCEPTS, STYLES
from benchmarks.report import RESULTS, ROOT, Target, console, facts, print_rows, print_targets, save
from engines.cache import EngineCache
from engines.prepare import build
from service.jobs.job import JobState
from service.jobs.open import open_store
from service.settings import ZOO
from tests.service.jobs.redis_server import RedisServer
from tests.support.server import ServerProcess

Body = dict[str, Any]

LEASE_S = 3.0
FAULT_S = 1.5 * LEASE_S
AT_WORK_S = 5.0
STUCK_S = 600.0  # a job that has not ended so long after the last fault never will
EXPECTED = {"storage_failed"}
"""Reasons for which a job may fail here: a picture that cannot be stored is told to the client."""


@dataclass
class Log:
    """What happened to the jobs. One thread submits while another makes faults."""

    bodies: dict[str, Body] = field(default_factory=dict)
    """Of every acknowledged job, by id."""
    cancelled: set[str] = field(default_factory=set)
    disconnects: int = 0
    faults: dict[str, float] = field(default_factory=dict)
    """Seconds of each, in the order in which they came."""


@dataclass(frozen=True)
class Verdict:
    """What came of a run."""

    states: Counter[str]
    reasons: Counter[str]
    """Of the jobs that failed."""
    lost: int
    """Acknowledged, and unknown now."""
    stuck: int
    changed: int
    """Completed with other pixels than the undisturbed run."""
    unexpected: int
    """Failed for another reason than a full disk, or cancelled though nobody asked."""
    more_completions: float
    """Completions that the store counted beyond the jobs that are completed."""
    repeated: int
    """Jobs that were claimed more than once: what the faults reached."""


def distinct_bodies(rng: random.Random, count: int) -> list[Body]:
    """Requests to the shipped models: one in eight to the many-step one."""

    def body(i: int) -> Body:
        prompt = f"{rng.choice(CONCEPTS)}, {rng.choice(STYLES)}"
        if i % 8 == 0:
            return {"model": "emoji-xl", "prompt": prompt, "seed": i, "num_inference_steps": rng.randint(8, 16)}
        return {"model": "emoji-xl-turbo", "prompt": prompt, "seed": i, "num_inference_steps": rng.randint(1, 4)}

    return [body(i) for i in range(count)]


def undisturbed(server: ServerProcess, bodies: Sequence[Body]) -> list[list[str]]:
    """Hashes of the pictures of each body."""
    jobs = server.finished([server.submit(**body) for body in bodies], STUCK_S)
    return [[result["content_sha256"] for result in job["results"]] for job in jobs]


class Chaos:
    """Load and faults on one server, which runs.

    Args:
        server: with its worker.
        store: URL of its job store.
        bodies: the requests that are drawn from.
        rng: of all draws.
    """

    def __init__(self, server: ServerProcess, store: str, bodies: Sequence[Body], rng: random.Random) -> None:
        self.server, self.bodies, self.log = server, bodies, Log()
        self._store = store
        self._load, self._order = random.Random(rng.random()), random.Random(rng.random())

    def run(self, count: int, faults: Faults, kinds: Sequence[str] = ()) -> None:
        """Submit ``count`` jobs in as many parts as there are faults, and one more. Every fault of ``kinds``, or every
        one there is, strikes once in the midst of a part, in the order of the seed."""
        order = list(kinds or faults.kinds)
        self._order.shuffle(order)
        ends = [count * (i + 1) // (len(order) + 1) for i in range(len(order) + 1)]
        for kind, (first, end) in zip(order, pairwise([0, *ends]), strict=False):
            thread = threading.Thread(target=self._submit_all, args=(first, end))
            thread.start()
            strikes = self._order.randrange(first, end)
            while thread.is_alive() and len(self.log.bodies) <= strikes:
                time.sleep(0.01)
            self._until_at_work()
            began = time.monotonic()
            faults.kinds[kind]()
            self.log.faults[kind] = round(time.monotonic() - began, 1)
            thread.join()
            self._until_ended(list(self.log.bodies)[first:])  # no job meets two faults
        self._submit_all(*ends[-2:])

    def judge(self, expected: Sequence[list[str]]) -> Verdict:
        """Wait for all jobs, and look at what became of them."""
        end, left = time.monotonic() + STUCK_S, set(self.log.bodies)
        found: dict[str, Body] = {}
        while left and time.monotonic() < end:
            for job_id in tuple(left):
                job = self._job(job_id)
                if job is not None and ("state" not in job or job["finished_at"] is not None):
                    found[job_id] = job
                    left.discard(job_id)
            time.sleep(0.2)
        known = {job_id: job for job_id, job in found.items() if "state" in job}
        wanted = {_name(body): hashes for body, hashes in zip(self.bodies, expected, strict=True)}
        changed = unexpected = 0
        for job_id, job in known.items():
            made = [result["content_sha256"] for result in job["results"]]
            changed += job["state"] == "completed" and made != wanted[_name(self.log.bodies[job_id])]
            unexpected += job["state"] == "failed" and job["error"]["code"] not in EXPECTED
            unexpected += job["state"] == "cancelled" and job_id not in self.log.cancelled
        states = Counter(job["state"] for job in known.values())
        return Verdict(
            states=states,
            reasons=Counter(job["error"]["code"] for job in known.values() if job["state"] == "failed"),
            lost=len(found) - len(known),
            stuck=len(left),
            changed=changed,
            unexpected=unexpected,
            more_completions=self._more_completions(),
            repeated=sum(job["attempts"] > 1 for job in known.values()),
        )

    def _submit_all(self, first: int, end: int) -> None:
        for i in range(first, end):
            body = self._load.choice(self.bodies)
            job_id = self._submit(body, f"chaos-{i}")
            self.log.bodies[job_id] = body
            if i % 10 == 9:
                time.sleep(self._load.uniform(0.0, 0.5))
                self._cancel(self._load.choice(list(self.log.bodies)[first:]))
            if i % 25 == 24:
                self._disconnect(body)

    def _submit(self, body: Body, key: str) -> str:
        """Submit until it is acknowledged; the key makes it one job however often that takes."""
        while True:
            with suppress(httpx.TransportError, RuntimeError):
                answer = self.server.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key}, timeout=10.0)
                if answer.status_code == httpx.codes.ACCEPTED:
                    return str(answer.json()["id"])
            time.sleep(0.2)

    def _cancel(self, job_id: str) -> None:
        with suppress(httpx.TransportError, RuntimeError):
            self.log.cancelled.add(job_id)  # also when the answer is lost
            self.server.http.delete(f"/v1/jobs/{job_id}", timeout=10.0)

    def _disconnect(self, body: Body) -> None:
        """A client that does not wait for its picture."""
        with suppress(httpx.TransportError, RuntimeError):
            self.server.http.post("/v1/images/generations", json={**body, "seed": 10_000}, timeout=0.05)
        self.log.disconnects += 1

    def _job(self, job_id: str) -> Body | None:
        with suppress(httpx.TransportError, ValueError):
            answer = self.server.http.get(f"/v1/jobs/{job_id}", timeout=10.0)
            if answer.status_code in (httpx.codes.OK, httpx.codes.NOT_FOUND):
                found: Body = answer.json()
                return found
        return None

    def _more_completions(self) -> float:
        """Completions that were ever recorded, beyond the jobs that are completed."""
        counted = self.server.metric("darkroom_store_jobs_ended_total", outcome="completed")
        with closing(open_store(self._store)) as store:
            return counted - sum(job.state is JobState.COMPLETED for job in store.list(1_000_000))

    def _until_at_work(self) -> None:
        """Until a job runs, which a fault can reach. All may be over already."""
        end = time.monotonic() + AT_WORK_S
        while time.monotonic() < end and not self._running():
            time.sleep(0.01)

    def _running(self) -> bool:
        answer = self.server.http.get("/v1/jobs", params={"state": "running", "limit": 1}).raise_for_status()
        return bool(answer.json()["data"])

    def _until_ended(self, jobs: Sequence[str]) -> None:
        end = time.monotonic() + STUCK_S
        for job_id in jobs:
            while time.monotonic() < end and (self._job(job_id) or {}).get("finished_at") is None:
                time.sleep(0.1)


def targets_of(verdict: Verdict) -> list[Target]:
    """What every run promises."""
    promised: dict[str, float] = {
        "acknowledged jobs lost": verdict.lost,
        "jobs stuck": verdict.stuck,
        "completed with other pixels": verdict.changed,
        "failed or cancelled for no reason": verdict.unexpected,
        "completions beyond one a job": abs(verdict.more_completions),
    }
    return [Target(name, value, 0.0, at_least=False) for name, value in promised.items()]


def _name(body: Body) -> str:
    return repr(sorted(body.items()))


class Store(StrEnum):
    """What the jobs are in."""

    SQLITE = "sqlite"
    REDIS = "redis"


@contextmanager
def opened(store: Store, folder: Path) -> Iterator[tuple[str, RedisServer | None]]:
    """The store's URL, and its server where it has one: it has written what it acknowledges."""
    if store is Store.SQLITE:
        yield f"sqlite:///{folder / 'data' / 'jobs.sqlite3'}", None
        return
    redis = RedisServer(folder / "redis", "always")
    try:
        yield redis.url, redis
    finally:
        redis.kill()


def measure(store: Store, seed: int, jobs: int, distinct: int) -> tuple[dict[str, Any], list[Target]]:
    """One run on one store: what happened, and what was promised of it."""
    rng = random.Random(seed)
    bodies = distinct_bodies(rng, distinct)
    engines = ROOT / ".cache" / "benchmarks" / "engines"
    for name in ("emoji-xl", "emoji-xl-turbo"):  # else they would be built while faults happen
        build(ZOO / name, EngineCache(engines))
    with tempfile.TemporaryDirectory(prefix="chaos-") as root, opened(store, folder := Path(root)) as (url, redis):
        settings = {"store": url, "lease_s": str(LEASE_S), "max_queued": str(jobs)}
        with ServerProcess(folder / "data", None, engines, "onnxruntime", True, **settings) as server:
            expected, chaos, began = undisturbed(server, bodies), Chaos(server, url, bodies, rng), time.monotonic()
            chaos.run(jobs, Faults(server, FAULT_S, redis))
            verdict = chaos.judge(expected)
            seconds = time.monotonic() - began
    print_rows(f"{store}: ended", ("state", "jobs"), sorted(verdict.states.items()))
    print_rows(f"{store}: failed", ("reason", "jobs"), sorted(verdict.reasons.items()))
    console.print(f"{verdict.repeated} jobs were claimed again; {seconds:.0f} s; faults, s: {chaos.log.faults}")
    targets = targets_of(verdict)
    print_targets(targets)
    return {
        **facts(),
        "seed": seed,
        "jobs": len(chaos.log.bodies),
        "many_step_jobs": sum(body["model"] == "emoji-xl" for body in chaos.log.bodies.values()),
        "faults": chaos.log.faults,
        "disconnects": chaos.log.disconnects,
        **vars(verdict),
        "seconds": round(seconds, 1),
        "targets": [target.to_json() for target in targets],
    }, targets


def main(
    seed: Annotated[int, typer.Option(help="Decides the requests, and the order of the faults.")] = 0,
    jobs: Annotated[int, typer.Option(help="Jobs to submit on each store.", min=10)] = 200,
    distinct: Annotated[int, typer.Option(help="Different requests among them.", min=8)] = 48,
    store: Annotated[list[Store] | None, typer.Option(help="Where the jobs are; repeat. Both if not given.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file; its other stores stay.")] = RESULTS / "chaos.json",
) -> None:
    """Put a server with the shipped models under load and faults; exit status 1 when a promise is broken."""
    broken = False
    for each in store or list(Store):
        content, targets = measure(each, seed, jobs, distinct)
        save(out, each, content)
        broken |= not all(target.met for target in targets)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
