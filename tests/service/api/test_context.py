"""What the routes share: cancelling counts and tells once."""

from __future__ import annotations

from tests.service.api.conftest import Server


def test_a_cancel_is_counted_once_and_told(server: Server) -> None:
    server.painter.gate.clear()
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).json()["state"] == "running")
    for _ in range(3):
        assert server.http.delete(address).json()["state"] == "cancelled"
    assert 'darkroom_jobs_total{outcome="cancelled",reason="client"} 1.0' in server.http.get("/metrics").text
    server.until(lambda: ("cancelled", address.removeprefix("/v1/jobs/")) in server.painter.heard)
    assert ("submitted", address.removeprefix("/v1/jobs/")) in server.painter.heard
