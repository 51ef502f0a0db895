"""The native job API."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service.jobs.job import JobError
from tests.service.api.conftest import Server


def test_life_of_a_job(server: Server) -> None:
    server.painter.gate.clear()
    accepted = server.http.post("/v1/jobs", json={"prompt": "x", "seed": 3, "n": 2, "task": "text-to-image"})
    job = accepted.json()
    address = f"/v1/jobs/{job['id']}"
    assert accepted.status_code == 202 and accepted.headers["location"] == address
    assert (job["object"], job["state"], job["results"], job["progress"]) == ("job", "queued", [], None)
    assert job["request"]["seed"] == 3 and job["request"]["num_inference_steps"] == 10
    early = server.http.get(f"{address}/results/0")
    assert early.status_code == 404 and early.json()["error"]["code"] == "result_not_found"
    server.until(lambda: server.http.get(address).json()["progress"] == {"step": 5, "steps": 10})
    assert server.http.get(address).json()["state"] == "running"
    server.painter.gate.set()
    server.until(lambda: server.http.get(address).json()["state"] == "completed")
    done = server.http.get(address).json()
    assert done["progress"] is None and done["error"] is None and done["attempts"] == 1
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert [result["seed"] for result in done["results"]] == [3, 4]
    for index, result in enumerate(done["results"]):
        assert result["url"] == f"{address}/results/{index}"
        picture = server.http.get(result["url"])
        assert picture.headers["content-type"] == result["media_type"] == "image/png"
        assert hashlib.sha256(picture.content).hexdigest() == result["content_sha256"]
        assert picture.headers["etag"] == f'"{result["content_sha256"]}"'
    assert server.http.get(f"{address}/results/2").json()["error"]["code"] == "result_not_found"
    assert server.http.get(f"{address}/results/x").status_code == 400
    assert server.http.delete(address).json()["state"] == "completed"


def test_failure_is_told(server: Server) -> None:
    server.painter.error = JobError(code="worker_lost", message="three workers died of it")
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).json()["state"] == "failed")
    assert server.http.get(address).json()["error"] == {"code": "worker_lost", "message": "three workers died of it"}


def test_cancel(server: Server) -> None:
    server.painter.paused.set()
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    for _ in range(2):
        assert server.http.delete(address).json()["state"] == "cancelled"
    assert 'darkroom_jobs_total{outcome="cancelled",reason="client"} 1.0' in server.http.get("/metrics").text
    assert server.http.delete("/v1/jobs/nothing").json()["error"]["code"] == "job_not_found"
    assert server.http.get("/v1/jobs/nothing").status_code == 404


def test_priority_and_deadline(server: Server) -> None:
    server.painter.paused.set()
    asked: dict[str, object] = {"prompt": "x", "priority": "batch", "deadline_s": 600}
    job = server.http.post("/v1/jobs", json=asked).json()
    assert job["priority"] == "batch" and job["deadline_at"] == pytest.approx(job["created_at"] + 600)
    job = server.http.post("/v1/jobs", json={"prompt": "x"}).json()
    assert job["priority"] == "standard" and job["deadline_at"] is None
    urgent = server.http.post("/v1/jobs", json={"prompt": "x", "priority": "interactive"}).json()
    (first,) = server.store.claim("another", 1, 30.0)
    assert first.job.id == urgent["id"], "the last one, but the most urgent"


def test_a_job_that_nobody_begins_in_time_expires(server: Server) -> None:
    server.painter.paused.set()
    kept, missed = (
        server.http.post("/v1/jobs", json={"prompt": "x", "deadline_s": seconds}).headers["location"]
        for seconds in (600, 0.01)
    )
    server.until(lambda: server.store.reap() == 0 and server.http.get(missed).json()["state"] == "expired")
    assert server.http.get(kept).json()["state"] == "queued"
    assert server.http.get(missed).json()["error"] is None and server.http.get(missed).json()["finished_at"]
    assert [f"/v1/jobs/{job['id']}" for job in server.http.get("/v1/jobs?state=expired").json()["data"]] == [missed]
    result = server.http.get(f"{missed}/results/0").json()["error"]
    assert result["code"] == "result_not_found" and "expired" in result["message"]
    assert server.http.delete(missed).json()["state"] == "expired"
    assert 'darkroom_store_jobs_ended_total{outcome="expired"} 1.0' in server.http.get("/metrics").text


def test_list(server: Server) -> None:
    server.painter.paused.set()
    assert server.http.get("/v1/jobs").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = [server.http.post("/v1/jobs", json={"prompt": str(i)}).json()["id"] for i in range(3)][::-1]
    page = server.http.get("/v1/jobs?limit=2").json()
    assert [job["id"] for job in page["data"]] == ids[:2] == [page["first_id"], page["last_id"]] and page["has_more"]
    rest = server.http.get(f"/v1/jobs?limit=2&after={page['last_id']}").json()
    assert [job["id"] for job in rest["data"]] == ids[2:] and not rest["has_more"]
    server.http.delete(f"/v1/jobs/{ids[0]}")
    assert [job["id"] for job in server.http.get("/v1/jobs?state=cancelled").json()["data"]] == ids[:1]


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("state=done", "state"), ("after=x", "after")],
)
def test_bad_queries(server: Server, query: str, param: str) -> None:
    answer = server.http.get(f"/v1/jobs?{query}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_idempotency(server: Server) -> None:
    headers = {"Idempotency-Key": "once"}
    ids = {server.http.post("/v1/jobs", json={"prompt": "x"}, headers=headers).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    assert server.http.post("/v1/jobs", json={"prompt": "y"}, headers=headers).status_code == 422


def test_jobs_outlive_the_server(server: Server, tmp_path: Path) -> None:
    del tmp_path
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    server.until(lambda: server.http.get(address).json()["state"] == "completed")
    assert server.store.get(address.removeprefix("/v1/jobs/")) is not None
