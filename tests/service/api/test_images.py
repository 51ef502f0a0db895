"""The synchronous endpoint through the stock OpenAI client."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from models.spec.model import ModelSpec
from service.api import events
from service.jobs.artifacts import ArtifactStore
from service.jobs.job import JobError, JobState
from service.settings import Settings
from tests.service.api.conftest import Server, run_server, square


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


def test_answers_with_addresses(server: Server) -> None:
    answer = server.openai.images.generate(prompt="x", n=2, response_format="url")
    assert answer.data is not None and [picture.b64_json for picture in answer.data] == [None, None]
    for picture in answer.data:
        content = httpx.get(picture.url or "").content
        assert hashlib.sha256(content).hexdigest() == picture.content_sha256  # type: ignore[attr-defined]


def events_of(stream: Iterable[Any]) -> list[dict[str, Any]]:
    return [event.model_dump() for event in stream]


def test_a_stream_shows_partial_pictures_and_then_the_picture(server: Server) -> None:
    server.painter.gate.clear()
    shown = []
    with server.openai.images.generate(
        prompt="x", model="tiny", size="64x32", stream=True, partial_images=2, extra_body={"seed": 5}
    ) as stream:
        for event in stream:
            shown.append(event.model_dump())
            if len(shown) == 2:
                server.painter.gate.set()
    assert [event["type"] for event in shown] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event["partial_image_index"] for event in shown[:2]] == [0, 1]
    assert [base64.b64decode(event["b64_json"]) for event in shown] == [square(red, "png") for red in (0, 1, 5)]
    for event in shown:
        assert (event["size"], event["output_format"], event["background"]) == ("64x32", "png", "opaque")
        assert event["created_at"] > 1.7e9 and event["quality"] == "auto"
    assert shown[2]["usage"]["total_tokens"] == 0 and shown[2]["seed"] == 5


def test_a_stream_of_several_pictures(server: Server) -> None:
    events = events_of(server.openai.images.generate(prompt="x", n=2, stream=True, partial_images=1))
    assert sorted(event["index"] for event in events if "partial" in event["type"]) == [0, 1]
    assert [event["index"] for event in events[-2:]] == [0, 1] and events[-1]["type"].endswith(".completed")
    plain = events_of(server.openai.images.generate(prompt="x", stream=True))
    assert [event["type"] for event in plain] == ["image_generation.completed"]


def test_a_failure_in_a_stream_is_raised_by_the_client(server: Server) -> None:
    server.painter.error = JobError(code="out_of_memory", message="the device has no memory left")
    with pytest.raises(openai.APIError, match="no memory left") as caught:
        events_of(server.openai.images.generate(prompt="x", stream=True))
    assert caught.value.code == "out_of_memory"
    with pytest.raises(openai.BadRequestError):
        server.openai.images.generate(prompt="x", size="1x1", stream=True)  # type: ignore[call-overload]


@pytest.mark.parametrize(("key", "state"), [(None, JobState.CANCELLED), ("k", JobState.RUNNING)])
def test_leaving_a_stream_cancels_unless_there_is_a_key(server: Server, key: str | None, state: JobState) -> None:
    server.painter.gate.clear()
    headers = {"Idempotency-Key": key} if key else {}
    with server.openai.images.generate(prompt="x", stream=True, partial_images=1, extra_headers=headers) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"
    server.until(lambda: 'endpoint="/v1/images/generations",status="200"} 1.0' in server.http.get("/metrics").text)
    assert server.store.get(_only(server)).state is state  # type: ignore[union-attr]


def test_partial_images_are_ignored_without_a_stream(server: Server) -> None:
    raw = server.openai.images.with_raw_response.generate(prompt="x", partial_images=2)
    assert raw.headers["x-darkroom-ignored"] == "partial_images"
    assert server.store.list(1)[0].request.partial_images == 0  # type: ignore[union-attr]


def picture(width: int = 90, height: int = 60, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(file, kind)
    return file.getvalue()


def the_request(server: Server) -> Any:
    return server.store.list(1)[0].request


def stored(server: Server, name: str) -> Image.Image:
    return Image.open(io.BytesIO(ArtifactStore(server.settings.artifacts_address).open(name)))


@pytest.mark.parametrize("listed", [False, True], ids=["image", "image[]"])
def test_an_edit(server: Server, listed: bool) -> None:
    file = ("cat.png", picture(), "image/png")
    raw = server.openai.images.with_raw_response.edit(
        image=[file] if listed else file,
        prompt="a blue cat",
        n=2,
        output_format="webp",
        input_fidelity="high",
        extra_body={"strength": 0.4, "seed": 3, "guidance_scale": 2, "deterministic": False},
    )
    answer = raw.parse()
    assert answer.data is not None and [one.seed for one in answer.data] == [3, 4]  # type: ignore[attr-defined]
    assert answer.output_format == "webp" and answer.size == "64x32", "the size whose proportions are nearest"
    assert raw.headers["x-darkroom-ignored"] == "input_fidelity"
    request = the_request(server)
    assert (request.task, request.strength, request.n, request.guidance_scale) == ("image-to-image", 0.4, 2, 2.0)
    assert request.deterministic is False
    with stored(server, request.image) as kept:
        assert (kept.format, kept.size, kept.mode) == ("PNG", (64, 32), "RGB")


def test_an_edit_under_a_mask(server: Server) -> None:
    mask = io.BytesIO()
    Image.new("RGBA", (90, 60), (0, 0, 0, 0)).save(mask, "png")
    answer = server.openai.images.edit(image=picture(), mask=mask.getvalue(), prompt="x", size="64x64")  # type: ignore[call-overload]
    request = the_request(server)
    assert answer.data and (request.task, request.strength, request.width) == ("inpainting", 1.0, 64)
    with stored(server, request.mask) as kept:
        assert (kept.mode, kept.size, kept.getextrema()) == ("L", (64, 64), (255, 255))


def test_an_edit_is_streamed_too(server: Server) -> None:
    stream = server.openai.images.edit(image=picture(), prompt="x", stream=True, partial_images=1)
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_an_edit_as_json(server: Server) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(picture(kind="jpeg")).decode()
    for image in (url, url.partition(",")[2], {"image_url": url}, [{"image_url": url}]):
        answer = server.http.post("/v1/images/edits", json={"prompt": "x", "image": image})
        assert answer.status_code == 200, answer.text
    assert len({job.request.image for job in server.store.list(9)}) == 1  # type: ignore[union-attr]


def test_edits_that_cannot_be(shared: Server) -> None:
    two = [("a.png", picture(), "image/png")] * 2
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"image": two}, "image", "2 pictures"),
        ({"image": b"no picture"}, "image", "is none of"),
        ({"image": picture(), "mask": picture(9, 9)}, "mask", "9x9"),
        ({"image": picture(), "model": "tiny-video"}, "model", "image-to-video"),
        ({"image": picture(), "extra_body": {"strength": 0}}, "strength", "greater than 0"),
        ({"image": picture(), "extra_body": {"strength": "much"}}, "strength", "number"),
        ({"image": picture(), "extra_body": {"fps": 7}}, "fps", "unknown field"),
        ({"image": picture(), "extra_body": {"markup": "x"}}, "markup", "not supported"),
    ]
    for arguments, param, said in cases:
        with pytest.raises(openai.BadRequestError) as caught:
            shared.openai.images.edit(prompt="x", **arguments)
        error = caught.value.body
        assert isinstance(error, dict) and error["param"] == param and said in error["message"], error
    missing = shared.http.post("/v1/images/edits", data={"prompt": "x"})
    assert missing.status_code == 400 and missing.json()["error"]["message"] == "image is required"


@pytest.mark.parametrize("metadata", [True, False])
def test_the_setting_for_metadata_is_in_the_job(tmp_path: Path, models: dict[str, ModelSpec], metadata: bool) -> None:
    with contextmanager(run_server)(Settings(data=tmp_path / "data", metadata=metadata), models) as server:
        server.http.post("/v1/jobs", json={"prompt": "x"})
        assert the_request(server).metadata is metadata


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


def test_what_only_a_worker_could_refuse_is_the_requests_fault(server: Server) -> None:
    server.painter.error = JobError(code="adapter_unusable", message="'ink' is for another model")
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.images.generate(prompt="x")
    assert caught.value.code == "adapter_unusable" and "'ink' is for another model" in str(caught.value)


def test_full_queue_is_retried_by_the_client(server: Server) -> None:
    server.painter.pause()
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


def test_cancelled_while_waiting(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 30.0)
    time.sleep(1.2)  # the pause that was under way
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
    assert caught.value.code == "cancelled" and took[0] + time.monotonic() < 20, "the wait was not woken"


def test_who_waits_goes_first_unless_asked_otherwise(server: Server) -> None:
    for asked, found in ((None, "interactive"), ("batch", "batch")):
        server.openai.images.generate(prompt="x", extra_body={"priority": asked})
        assert server.store.list(1)[0].priority == found


def test_expired_while_waiting(server: Server) -> None:
    server.painter.pause()

    def resume() -> None:
        server.until(lambda: len(server.store.list(1)) == 1)
        time.sleep(0.2)
        server.painter.paused.clear()

    threading.Thread(target=resume).start()
    answer = server.http.post("/v1/images/generations", json={"prompt": "x", "deadline_s": 0.1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (429, "expired", "deadline_s")
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
