"""The synchronous endpoint through the stock OpenAI client."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from models.spec.model import ModelSpec
from service.jobs.job import JobError, JobState
from service.settings import Settings
from tests.service.api.conftest import Server, run_server


def test_generate_answers_with_a_picture(server: Server) -> None:
    answer = server.openai.images.generate(
        prompt="a red square", model="tiny", size="64x32", n=2, extra_body={"seed": 7}
    )
    assert answer.created > 1.7e9 and answer.size == "64x32" and answer.output_format == "png"
    assert answer.data is not None and [picture.seed for picture in answer.data] == [7, 8]  # type: ignore[attr-defined]
    for picture in answer.data:
        content = base64.b64decode(picture.b64_json or "")
        assert hashlib.sha256(content).hexdigest() == picture.content_sha256  # type: ignore[attr-defined]
        assert Image.open(io.BytesIO(content)).format == "PNG"
        assert picture.numerics_id == "n1"  # type: ignore[attr-defined]


def test_every_knob_reaches_the_job(server: Server) -> None:
    raw = server.openai.images.with_raw_response.generate(
        prompt="x",
        model="tiny-two",
        output_format="jpeg",
        output_compression=0,
        extra_body={
            "num_inference_steps": 3,
            "guidance_scale": 2,
            "negative_prompt": "blue",
            "scheduler": "EulerAncestralDiscreteScheduler",
            "deterministic": False,
            "seed": 2**63 - 1,
        },
    )
    job = server.store.get(raw.headers["x-darkroom-job"])
    assert job is not None
    request = job.request
    assert (request.model, request.width, request.height, request.n) == ("tiny-two", 64, 64, 1)
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == (3, 2.0, "euler-ancestral")
    assert (request.negative_prompt, request.deterministic, request.seed) == ("blue", False, 2**63 - 1)
    assert (request.output_format, request.output_compression) == ("jpeg", 1)
    assert raw.parse().data[0].job == job.id  # type: ignore[index, union-attr]


def test_defaults_are_the_models(server: Server) -> None:
    first, second = (server.http.post("/v1/images/generations", json={"prompt": "x"}) for _ in range(2))
    job = server.store.get(first.headers["x-darkroom-job"])
    assert job is not None and job.request.model == "tiny"
    assert (job.request.num_inference_steps, job.request.guidance_scale, job.request.scheduler) == (10, 4.0, "euler")
    assert first.json()["data"][0]["seed"] != second.json()["data"][0]["seed"]


def test_null_means_the_default(server: Server) -> None:
    names = ("model", "n", "size", "seed", "stream", "response_format", "user", "quality", "negative_prompt")
    answer = server.http.post("/v1/images/generations", json={"prompt": "x"} | dict.fromkeys(names))
    assert answer.status_code == 200 and "x-darkroom-ignored" not in answer.headers


def test_fields_that_change_no_pixel_are_named(server: Server) -> None:
    raw = server.openai.images.with_raw_response.generate(
        prompt="x", user="u", quality="high", style="vivid", moderation="low", background="auto"
    )
    assert raw.headers["x-darkroom-ignored"] == "user, quality, moderation, style"


def test_unknown_model_names_the_installed(shared: Server) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        shared.openai.images.generate(prompt="x", model="dall-e-3")
    assert "installed: tiny, tiny-two" in str(caught.value) and caught.value.code == "model_not_found"


def test_failed_job_is_not_retried(server: Server) -> None:
    server.painter.error = JobError(code="out_of_memory", message="the device has no memory left")
    with pytest.raises(openai.InternalServerError) as caught:
        server.openai.images.generate(prompt="x")
    assert caught.value.code == "out_of_memory" and "no memory left" in str(caught.value)
    assert len(server.store.list(10)) == 1


def test_full_queue_is_retried_by_the_client(server: Server) -> None:
    server.painter.paused.set()
    for _ in range(5):
        assert server.http.post("/v1/jobs", json={"prompt": "x"}).status_code == 202
    refused = server.http.post("/v1/jobs", json={"prompt": "x"})
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    threading.Timer(0.2, server.painter.paused.clear).start()
    assert server.openai.images.generate(prompt="x").data


@pytest.fixture
def impatient(tmp_path: Path, models: dict[str, ModelSpec]) -> Iterator[Server]:
    """A server that waits a fifth of a second for a picture."""
    yield from run_server(Settings(data=tmp_path / "impatient", sync_timeout_s=0.2), models)


def test_timeout_names_the_job_that_goes_on(impatient: Server) -> None:
    server = impatient
    server.painter.gate.clear()
    answer = server.http.post("/v1/images/generations", json={"prompt": "x"})
    job_id = answer.headers["x-darkroom-job"]
    assert answer.status_code == 504 and f"/v1/jobs/{job_id}" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    server.painter.gate.set()
    server.until(lambda: server.http.get(f"/v1/jobs/{job_id}").json()["state"] == "completed")


def test_cancelled_while_waiting(server: Server) -> None:
    server.painter.gate.clear()
    took: list[float] = []

    def cancel() -> None:
        server.until(lambda: len(server.store.list(1)) == 1)
        time.sleep(0.2)
        took.append(-time.monotonic())
        httpx.delete(f"{server.url}/v1/jobs/{_only(server)}")

    threading.Thread(target=cancel).start()
    with pytest.raises(openai.InternalServerError) as caught:
        server.openai.images.generate(prompt="x")
    assert caught.value.code == "cancelled" and took[0] + time.monotonic() < 0.8, "the wait was not woken"


def test_who_waits_goes_first_unless_asked_otherwise(server: Server) -> None:
    for asked, found in ((None, "interactive"), ("batch", "batch")):
        server.openai.images.generate(prompt="x", extra_body={"priority": asked})
        assert server.store.list(1)[0].priority == found


def test_expired_while_waiting(server: Server) -> None:
    server.painter.paused.set()
    threading.Timer(0.3, server.painter.paused.clear).start()
    began = time.monotonic()
    answer = server.http.post("/v1/images/generations", json={"prompt": "x", "deadline_s": 0.1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "expired") and time.monotonic() - began < 10
    assert "deadline_s = 0.1" in error["message"] and int(answer.headers["retry-after"]) >= 1
    assert server.http.post("/v1/images/generations", json={"prompt": "x", "deadline_s": 60}).status_code == 200


@pytest.mark.parametrize(("key", "state"), [(None, JobState.CANCELLED), ("k", JobState.RUNNING)])
def test_disconnect_cancels_unless_there_is_a_key(server: Server, key: str | None, state: JobState) -> None:
    server.painter.gate.clear()
    _post_and_hang_up(server, key)
    if state is JobState.CANCELLED:
        server.until(lambda: server.store.get(_only(server)).state is state)  # type: ignore[union-attr]
        assert 'darkroom_jobs_total{outcome="cancelled",reason="disconnect"} 1.0' in server.http.get("/metrics").text
    server.until(lambda: 'status="499"} 1.0' in server.http.get("/metrics").text)
    assert server.store.get(_only(server)).state is state  # type: ignore[union-attr]


def test_same_key_same_picture(server: Server) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (server.openai.images.generate(prompt="x", extra_headers=headers) for _ in range(2))
    assert first.data == second.data and len(server.store.list(10)) == 1
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        server.openai.images.generate(prompt="y", extra_headers=headers)
    assert caught.value.code == "idempotency_conflict"
    long = server.http.post("/v1/jobs", json={"prompt": "x"}, headers={"Idempotency-Key": "k" * 256})
    assert long.status_code == 400 and long.json()["error"]["param"] == "Idempotency-Key"


def test_deleted_picture(server: Server) -> None:
    headers = {"Idempotency-Key": "once"}
    assert server.openai.images.generate(prompt="x", extra_headers=headers).data
    for path in Path(server.settings.artifacts_address).rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.images.generate(prompt="x", extra_headers=headers)
    assert caught.value.code == "result_gone"


def _only(server: Server) -> str:
    (job,) = server.store.list(2)
    return job.id


def _post_and_hang_up(server: Server, key: str | None) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"prompt": "x"}'
    lines = [
        b"POST /v1/images/generations HTTP/1.1",
        b"Host: x",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *([b"Idempotency-Key: " + key.encode()] if key else []),
    ]
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        server.until(lambda: [job.state for job in server.store.list(2)] == [JobState.RUNNING])
