"""Request ids, the access log, and bodies that are too large."""

from __future__ import annotations

import logging

import pytest

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
    answer = shared.http.post("/v1/jobs", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
