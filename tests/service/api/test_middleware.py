"""Request ids, the access log, and bodies that are too large."""

from __future__ import annotations

import logging
import socket
import time

import pytest

from service.api import middleware
from tests.service.api.conftest import Server


def test_request_ids(shared: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "darkroom.access"):
        answer = shared.http.get("/v1/models", headers={"x-request-id": "abc-1"})
        # The line is written after the last byte of the answer.
        shared.until(lambda: any(getattr(record, "request_id", "") == "abc-1" for record in caplog.records))
    assert answer.headers["x-request-id"] == "abc-1"
    (line,) = [record for record in caplog.records if getattr(record, "request_id", "") == "abc-1"]
    assert vars(line)["path"] == "/v1/models" and vars(line)["status"] == 200
    ids = {shared.http.get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "a b")}
    assert len(ids) == 2 and all(len(one) == 32 for one in ids)
    for path in ("/none", "/broken", "/v1/jobs?limit=0"):
        assert len(shared.http.get(path).headers["x-request-id"]) == 32


def test_large_body_of_unknown_length(shared: Server) -> None:
    chunks = (b"x" * 65536 for _ in range(64))
    answer = shared.http.post("/v1/images/generations", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def connected(server: Server, *lines: bytes) -> socket.socket:
    """A connection over which these lines of a request were sent."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(b"\r\n".join([*lines, b"", b""]))
    return connection


POST = (b"POST /v1/jobs HTTP/1.1", b"Host: x", b"Content-Type: application/json", b"Content-Length: 1000")


def test_slow_bodies_are_cut_off(shared: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "PAUSE_S", 0.2)
    with connected(shared, *POST) as silent:
        answer = silent.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408") and b"too_slow" in answer
    monkeypatch.setattr(middleware, "PAUSE_S", 20.0)
    monkeypatch.setattr(middleware, "BODY_S", 0.5)
    with connected(shared, *POST) as dripping:
        dripping.settimeout(0.1)
        answer, began = b"", time.monotonic()
        while not answer and time.monotonic() - began < 10:
            dripping.sendall(b" ")
            try:
                answer = dripping.recv(65536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")
    assert shared.http.get("/health/live").status_code == 200


def test_a_client_that_leaves_before_its_body_has_come_is_no_fault_of_ours(server: Server) -> None:
    with connected(server, *POST) as leaving:
        leaving.sendall(b"{")
    left = 'darkroom_requests_total{endpoint="/v1/jobs",status="499"} 1.0'
    server.until(lambda: left in server.http.get("/metrics").text)
    assert 'status="500"' not in server.http.get("/metrics").text
    server.http.get("/broken")
    assert 'status="500"' in server.http.get("/metrics").text


def test_a_client_that_takes_nothing_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "PAUSE_S", 0.5)
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).json()["state"] == "completed")
    name = server.http.get(address).json()["results"][0]["content_sha256"]
    folder = server.settings.data / "artifacts" / name[:2]
    (folder / name).write_bytes(bytes(64 * 2**20))
    with connected(server, b"GET %s/results/0 HTTP/1.1" % address.encode(), b"Host: x") as deaf:
        server.until(lambda: "darkroom_open_requests 2.0" in server.http.get("/metrics").text)
        server.until(lambda: "darkroom_open_requests 1.0" in server.http.get("/metrics").text, 20)
        deaf.close()


def test_uploads_have_a_budget_together(shared: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = middleware._Budget(100)
    assert budget.take(60) and not budget.take(60) and budget.take(40)
    budget.give_back(60)
    assert budget.take(60)
    monkeypatch.setattr(middleware._Budget, "take", lambda *_: False)
    answer = shared.http.post("/v1/jobs", json={"prompt": "x"})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    monkeypatch.undo()
    assert shared.http.post("/v1/jobs", json={"prompt": "x"}).status_code == 202
