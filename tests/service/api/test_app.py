"""The wiring: what it offers, and what runs beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from models.spec.model import ModelSpec
from service.api import app
from service.api.context import Services
from service.api.forecast import Forecast
from service.errors import Unavailable
from service.jobs.job import JobState
from service.jobs.retention import Deleted, Retention
from service.jobs.store import QueueStats
from service.metrics import ApiMetrics
from service.settings import Settings
from tests.service.api.conftest import Server, run_server


def test_schema_is_served(shared: Server) -> None:
    paths = shared.http.get("/openapi.json").json()["paths"]
    assert {"/v1/images/generations", "/v1/jobs", "/v1/models"} <= set(paths)


@dataclass
class Reaped:
    """A store that is away for the first calls, and remembers what was asked."""

    away: int
    calls: list[str] = field(default_factory=list)

    def reap(self) -> int:
        return self._answer("reap")

    def stats(self) -> int:
        return self._answer("stats")

    def _answer(self, verb: str) -> int:
        self.calls.append(verb)
        if len(self.calls) <= self.away:
            raise Unavailable("the server does not answer")
        return 0


@pytest.mark.parametrize(
    ("away", "calls"), [(0, ["reap", "reap"]), (3, ["reap", "stats", "stats", "stats", "reap", "reap"])]
)
async def test_workers_may_renew_before_leases_are_taken_back(
    monkeypatch: pytest.MonkeyPatch, away: int, calls: list[str]
) -> None:
    monkeypatch.setattr(app, "REAP_S", 0.01)
    store = Reaped(away)
    services = SimpleNamespace(store=store, metrics=ApiMetrics())
    reaping = asyncio.create_task(app._reap(cast(Services, services)))
    while len(store.calls) < len(calls):
        await asyncio.sleep(0.01)
    reaping.cancel()
    assert store.calls[: len(calls)] == calls


async def test_what_workers_elsewhere_end_is_observed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(app, "OBSERVE_S", 0.01)
    looks = 0

    def stats() -> QueueStats:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise Unavailable("the server does not answer")
        return QueueStats(5, 1, None, ended={JobState.COMPLETED: looks})

    services = SimpleNamespace(store=SimpleNamespace(stats=stats), forecast=Forecast(tmp_path / "none"))
    observing = asyncio.create_task(app._observe(cast(Services, services)))
    while services.forecast.seconds_per_job("m") is None:
        await asyncio.sleep(0.01)
    observing.cancel()
    assert looks >= 3 and services.forecast.seconds_per_job("m") > 0


@pytest.fixture
def forgetful(tmp_path: Path, models: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that keeps ended jobs for half a second."""
    monkeypatch.setattr(app, "COLLECT_S", 0.1)
    monkeypatch.setattr(Settings, "retention", Retention(max_age_s=0.5, grace_s=0.0))
    yield from run_server(Settings(data=tmp_path / "forgetful"), models)


def test_old_jobs_and_their_pictures_are_deleted(forgetful: Server) -> None:
    server = forgetful
    server.painter.gate.clear()
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).json()["state"] == "running")
    server.painter.pause()
    server.painter.gate.set()
    waiting = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).status_code == 404, 20)
    server.until(lambda: 'darkroom_deleted_total{what="artifacts"} 1.0' in server.http.get("/metrics").text)
    assert 'darkroom_deleted_total{what="jobs"} 1.0' in server.http.get("/metrics").text
    assert server.http.get(waiting).json()["state"] == "queued"


@pytest.mark.parametrize(("retention_s", "max_age_s"), [(0.0, None), (60.0, 60.0)])
async def test_what_no_job_refers_to_goes_even_when_all_jobs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retention_s: float, max_age_s: float | None
) -> None:
    asked: list[Retention] = []
    monkeypatch.setattr(app, "COLLECT_S", 0.01)
    monkeypatch.setattr(app, "collect", lambda _store, _artifacts, how: asked.append(how) or Deleted(0, 0, 0, 0))
    settings = Settings(data=tmp_path, retention_s=retention_s)
    services = SimpleNamespace(settings=settings, store=None, artifacts=None, metrics=ApiMetrics())
    collecting = asyncio.create_task(app._collect(cast(Services, services)))
    await asyncio.sleep(0.3)
    assert asked and asked[0] == Retention(max_age_s=max_age_s, max_bytes=None)
    collecting.cancel()
