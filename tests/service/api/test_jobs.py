"""The native job API."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.jobs.job import JobError
from tests.service.api.conftest import Server, square


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
    server.painter.pause()
    address = server.http.post("/v1/jobs", json={"prompt": "x"}).headers["location"]
    for _ in range(2):
        assert server.http.delete(address).json()["state"] == "cancelled"
    assert 'darkroom_jobs_total{outcome="cancelled",reason="client"} 1.0' in server.http.get("/metrics").text
    assert server.http.delete("/v1/jobs/nothing").json()["error"]["code"] == "job_not_found"
    assert server.http.get("/v1/jobs/nothing").status_code == 404


def events(server: Server, address: str, **headers: str) -> Iterator[dict[str, Any]]:
    """The stream of a job's events, as they come."""
    with server.http.stream("GET", f"{address}/events", headers=headers) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, Any] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                event[name] = json.loads(value) if name == "data" else value
            elif event:
                yield event
                event = {}


def test_events_from_the_queue_to_the_end(server: Server) -> None:
    server.painter.pause()
    server.painter.gate.clear()
    server.http.post("/v1/jobs", json={"prompt": "before"})
    address = server.http.post("/v1/jobs", json={"prompt": "x", "partial_images": 2}).headers["location"]
    stream = events(server, address)
    first = next(stream)
    assert first["event"] == "state" and first["data"]["state"] == "queued"
    assert first["data"]["queue_position"] == 1 == server.http.get(address).json()["queue_position"]
    server.painter.paused.clear()
    seen = [next(stream) for _ in range(5)]
    previews = [event for event in seen if event["event"] == "preview"]
    assert [event["data"]["part"] for event in previews] == [0, 1] and "id" in previews[0]
    assert base64.b64decode(previews[1]["data"]["b64_json"]) == square(1, "png")
    assert previews[1]["data"]["media_type"] == "image/png"
    states = [event["data"]["state"] for event in seen if event["event"] == "state"]
    assert states == ["running"]
    progress = [event["data"] for event in seen if event["event"] == "progress"]
    assert progress[0] == {"step": 5, "steps": 10, "eta_s": progress[0]["eta_s"]} and progress[0]["eta_s"] >= 0
    server.painter.gate.set()
    *_, last = stream
    assert (last["event"], last["id"], last["data"]["state"]) == ("state", "end", "completed")
    assert last["data"]["results"][0]["url"] == f"{address}/results/0"


def test_events_after_a_reconnect(server: Server) -> None:
    server.painter.gate.clear()
    address = server.http.post("/v1/jobs", json={"prompt": "x", "partial_images": 2}).headers["location"]
    first: list[str] = []
    for event in events(server, address):
        first += [event["id"]] if event["event"] == "preview" else []
        if len(first) == 2:
            break
    for after, missed in ((first[0], 1), (first[1], 0), ("another-7", 2), ("nonsense", 2)):
        stream, again = events(server, address, **{"Last-Event-ID": after}), []
        while not again or again[-1]["event"] != "state":
            again.append(next(stream))
        again += itertools.takewhile(lambda event: event["event"] == "preview", stream)  # progress comes after them
        stream.close()
        assert [event["event"] for event in again].count("preview") == missed
        assert again[0]["data"]["state"] == "running"
    server.painter.gate.set()
    *_, last = events(server, address)
    assert last["data"]["state"] == "completed"
    assert server.http.get(f"{address}/events", headers={"Last-Event-ID": "end"}).status_code == 204
    assert server.http.get("/v1/jobs/none/events").status_code == 404


def picture() -> str:
    return base64.b64encode(square(200, "png")).decode()


def test_every_task(server: Server) -> None:
    white = io.BytesIO()
    Image.new("L", (8, 8), 255).save(white, "png")
    mask = base64.b64encode(white.getvalue()).decode()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "x"}, "text-to-image"),
        ({"prompt": "x", "image": picture()}, "image-to-image"),
        ({"prompt": "x", "image": picture(), "mask": mask, "strength": 0.5}, "inpainting"),
        ({"image": picture(), "model": "tiny-video", "fps": 9, "n": 2}, "image-to-video"),
        ({"image": picture(), "task": "image-to-video", "seconds": 1.0}, "image-to-video"),
    ]
    for body, task in cases:
        job = server.http.post("/v1/jobs", json=body).json()
        assert job["request"]["task"] == task, job
        address = f"/v1/jobs/{job['id']}"
        server.until(lambda address=address: server.http.get(address).json()["state"] == "completed")  # type: ignore[misc]
    result = server.http.get(address).json()["results"][0]
    assert result["media_type"] == "video/mp4"
    assert [variant["name"] for variant in result["variants"]] == ["thumbnail", "spritesheet"]
    for variant in result["variants"]:
        content = server.http.get(variant["url"]).content
        assert hashlib.sha256(content).hexdigest() == variant["content_sha256"]
    assert server.http.get(f"{result['url']}?variant=none").status_code == 404
    listed = server.http.get("/v1/jobs?task=inpainting").json()["data"]
    assert [job["request"]["task"] for job in listed] == ["inpainting"]


def test_a_form_makes_a_job_too(server: Server) -> None:
    files = {"image": ("a.png", square(1, "png"), "image/png")}
    fields = {"prompt": "x", "strength": "0.5", "n": "2", "deterministic": "false", "num_inference_steps": "3"}
    job = server.http.post("/v1/jobs", data=fields, files=files).json()
    found = {name: job["request"][name] for name in fields}
    assert found == {"prompt": "x", "strength": 0.5, "n": 2, "deterministic": False, "num_inference_steps": 3}


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": "x", "strength": 0.5}, "strength", "no field of text-to-image"),
        ({"prompt": "x", "seconds": 4}, "seconds", "no field of text-to-image"),
        ({"prompt": "x", "task": "image-to-image"}, "image", "begins from a picture"),
        ({"prompt": "x", "task": "inpainting", "image": picture()}, "mask", "required for inpainting"),
        ({"prompt": "x", "mask": picture()}, "image", "begins from a picture"),
        ({"image": picture()}, "prompt", "required"),
        ({"image": "https://example.org/a.png"}, "image", "not fetched"),
        ({"image": picture(), "model": "tiny-video", "partial_images": 1}, "partial_images", "no field of"),
        ({"prompt": "x", "task": "text-to-image", "model": "tiny-video"}, "model", "not text-to-image"),
        ({"prompt": "x", "task": "drawing"}, "task", "'text-to-image'"),
    ],
)
def test_fields_that_do_not_belong_together(shared: Server, body: dict[str, Any], param: str, said: str) -> None:
    answer = shared.http.post("/v1/jobs", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"], error


def test_priority_and_deadline(server: Server) -> None:
    server.painter.pause()
    asked: dict[str, object] = {"prompt": "x", "priority": "batch", "deadline_s": 600}
    job = server.http.post("/v1/jobs", json=asked).json()
    assert job["priority"] == "batch" and job["deadline_at"] == pytest.approx(job["created_at"] + 600)
    job = server.http.post("/v1/jobs", json={"prompt": "x"}).json()
    assert job["priority"] == "standard" and job["deadline_at"] is None
    urgent = server.http.post("/v1/jobs", json={"prompt": "x", "priority": "interactive"}).json()
    (first,) = server.store.claim("another", 1, 30.0)
    assert first.job.id == urgent["id"], "the last one, but the most urgent"


def test_a_job_that_nobody_begins_in_time_expires(server: Server) -> None:
    server.painter.pause()
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
    server.painter.pause()
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
def test_bad_queries(shared: Server, query: str, param: str) -> None:
    answer = shared.http.get(f"/v1/jobs?{query}")
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
