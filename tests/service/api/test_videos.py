"""Clips through the stock OpenAI client, whose video calls are deprecated and unchanged."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import openai
import pytest
from PIL import Image

from service.api.videos import video_of
from service.api.views import Progress
from service.jobs.job import ImageToVideo, Job, JobError, JobState
from tests.service.api.conftest import Server, square

pytestmark = pytest.mark.filterwarnings("ignore:.*[Vv]ideo.*:DeprecationWarning", "ignore:.*Sora.*:DeprecationWarning")


def picture() -> tuple[str, bytes, str]:
    file = io.BytesIO()
    Image.new("RGB", (90, 60), "green").save(file, "png")
    return "first.png", file.getvalue(), "image/png"


def create(server: Server, **changes: Any) -> Any:
    return server.openai.videos.create(**{"prompt": "waves", "input_reference": picture(), **changes})


def test_a_clip_from_beginning_to_end(server: Server) -> None:
    video = server.openai.videos.create_and_poll(
        prompt="waves",
        model="tiny-video",
        seconds="4",
        size="64x32",  # type: ignore[arg-type]
        input_reference=picture(),
        extra_body={"seed": 9, "motion_bucket_id": 60},
        poll_interval_ms=50,
    )
    assert (video.object, video.status, video.progress, video.model) == ("video", "completed", 100, "tiny-video")
    assert (video.size, video.prompt, video.error) == ("64x32", "waves", None)
    assert video.seconds == "3.86" and video.completed_at and video.expires_at, "27 frames, 7 a second"
    request = server.store.get(video.id).request  # type: ignore[union-attr]
    assert isinstance(request, ImageToVideo)
    assert (request.frames, request.segments, request.fps, request.motion_bucket_id) == (14, 2, 7, 60)
    assert server.openai.videos.download_content(video.id).read() == b"a clip of 9"
    for variant, kind in (("thumbnail", "webp"), ("spritesheet", "jpeg")):
        content = server.openai.videos.download_content(video.id, variant=variant)  # type: ignore[arg-type]
        assert content.read() == square(9, kind) and content.response.headers["content-type"] == f"image/{kind}"


def test_status_and_progress(server: Server) -> None:
    server.painter.pause()
    video = create(server)
    assert (video.status, video.progress, video.seconds, video.size) == ("queued", 0, "2", "64x32")
    early = server.http.get(f"/v1/videos/{video.id}/content")
    assert early.status_code == 404 and "queued" in early.json()["error"]["message"]
    server.painter.gate.clear()
    server.painter.paused.clear()
    server.until(lambda: server.openai.videos.retrieve(video.id).progress == 50)
    raw = server.openai.videos.with_raw_response.retrieve(video.id)
    assert raw.parse().status == "in_progress" and 250 <= int(raw.headers["openai-poll-after-ms"]) <= 5000
    server.painter.error = JobError(code="out_of_memory", message="too much")
    server.painter.gate.set()
    failed = server.openai.videos.poll(video.id, poll_interval_ms=20)
    assert failed.status == "failed" and failed.error is not None
    assert (failed.error.code, failed.error.message) == ("out_of_memory", "too much")
    content = server.http.get(f"/v1/videos/{video.id}/content")
    assert content.status_code == 404 and "failed" in content.json()["error"]["message"]


def test_lists_are_paged_by_the_client(server: Server) -> None:
    server.http.post("/v1/jobs", json={"prompt": "a picture, which is no video"})
    made = [create(server).id for _ in range(3)]
    assert [video.id for video in server.openai.videos.list(limit=2)] == made[::-1]
    assert [video.id for video in server.openai.videos.list(limit=2, order="asc")] == made
    page = server.http.get("/v1/videos?limit=2").json()
    assert page["object"] == "list" and page["has_more"] is True
    assert [page["first_id"], page["last_id"]] == [video["id"] for video in page["data"]]
    assert server.http.get("/v1/videos?after=none").json()["error"]["param"] == "after"
    assert server.http.get("/v1/videos?order=up").json()["error"]["param"] == "order"


def test_delete(server: Server) -> None:
    server.painter.gate.clear()
    video = create(server)
    server.until(lambda: server.openai.videos.retrieve(video.id).status == "in_progress")
    assert server.openai.videos.delete(video.id).model_dump() == {
        "id": video.id,
        "object": "video.deleted",
        "deleted": True,
    }
    server.until(lambda: ("cancelled", video.id) in server.painter.heard)
    with pytest.raises(openai.NotFoundError):
        server.openai.videos.retrieve(video.id)
    with pytest.raises(openai.NotFoundError):
        server.openai.videos.delete(video.id)
    assert list(server.openai.videos.list()) == []


def test_a_picture_is_no_video(server: Server) -> None:
    job_id = server.http.post("/v1/jobs", json={"prompt": "x"}).json()["id"]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = server.http.request(method, f"/v1/videos/{job_id}{path}")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "video_not_found"
    assert server.store.get(job_id) is not None


def test_what_is_not_offered_says_so(shared: Server) -> None:
    for path in ("some-id/remix", "edits", "extensions"):
        answer = shared.http.post(f"/v1/videos/{path}", json={"prompt": "x"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"seconds": "12"}, "seconds", "between 0.47 and 10.60"),
        ({"seconds": "soon"}, "seconds", "number"),
        ({"seconds": "-1"}, "seconds", "greater than 0"),
        ({"size": "1280x720"}, "size", "auto, 64x32, 32x64"),
        ({"model": "tiny"}, "model", "not image-to-video"),
        ({"extra_body": {"fps": 31}}, "fps", "30"),
        ({"extra_body": {"min_guidance_scale": 9}}, "min_guidance_scale", "limit of 3"),
        ({"extra_body": {"negative_prompt": "x"}}, "negative_prompt", "unknown field"),
        ({"input_reference": b"not a picture"}, "input_reference", "is none of"),
        ({"input_reference": openai.omit}, "input_reference", "begins from a picture"),
    ],
)
def test_bad_values_are_explained(shared: Server, changes: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(shared, **changes)
    error = caught.value.body
    assert isinstance(error, dict) and error["param"] == param and said in error["message"], error


def test_other_ways_to_send_the_picture(server: Server) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()[1]).decode()
    nested = create(server, input_reference=openai.omit, extra_body={"input_reference": {"image_url": url}})
    as_json = server.http.post("/v1/videos", json={"prompt": "x", "input_reference": url, "seconds": 1, "fps": None})
    assert as_json.status_code == 200 and as_json.json()["seconds"] == "1"
    first, second = (server.store.get(video).request for video in (nested.id, as_json.json()["id"]))  # type: ignore[union-attr]
    assert first.inputs == second.inputs


def test_polling_ends_by_itself(server: Server) -> None:
    server.painter.gate.clear()
    threading.Timer(0.5, server.painter.gate.set).start()
    video = server.openai.videos.create_and_poll(prompt="x", input_reference=picture())
    assert video.status == "completed"


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        (JobState.QUEUED, "queued", None),
        (JobState.RUNNING, "in_progress", None),
        (JobState.COMPLETED, "completed", None),
        (JobState.CANCELLED, "failed", "cancelled"),
        (JobState.EXPIRED, "failed", "expired"),
    ],
)
def test_every_state_has_a_status(state: JobState, status: str, code: str | None) -> None:
    request = ImageToVideo(
        model="m",
        width=8,
        height=8,
        num_inference_steps=4,
        guidance_scale=1,
        scheduler="euler",
        seed=0,
        image="0",
        frames=14,
        fps=7,
    )
    finished_at = 5.0 if state.final else None
    video = video_of(
        Job(id="a", request=request, state=state, created_at=1, finished_at=finished_at), Progress(step=4, steps=4), 10
    )
    assert video.status == status and (video.error.code if video.error else None) == code
    assert video.progress == {JobState.COMPLETED: 100, JobState.RUNNING: 99}.get(state, 0)
    assert video.expires_at == (15 if state.final else None)
