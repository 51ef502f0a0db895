"""What the routes share: submissions hold up nobody, cancelling counts and tells once."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tests.service.api.conftest import Server


def test_a_submission_that_waits_for_the_file_holds_up_nobody(server: Server) -> None:
    server.painter.pause()
    file = server.settings.store_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("BEGIN IMMEDIATE")
        submission = pool.submit(server.http.post, "/v1/jobs", json={"prompt": "x"})
        for _ in range(20):
            assert server.http.get("/v1/jobs").elapsed.total_seconds() < 1.0
        assert not submission.done()
        other.execute("COMMIT")
        assert submission.result(10).status_code == 202


def test_a_cancel_is_counted_once_and_told(server: Server) -> None:
    server.painter.gate.clear()
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).json()["state"] == "running")
    for _ in range(3):
        assert server.http.delete(address).json()["state"] == "cancelled"
    assert 'darkroom_jobs_total{outcome="cancelled",reason="client"} 1.0' in server.http.get("/metrics").text
    server.until(lambda: ("cancelled", address.removeprefix("/v1/jobs/")) in server.painter.heard)
    assert ("submitted", address.removeprefix("/v1/jobs/")) in server.painter.heard
