"""The peer that batches by request: what it puts together, and that it makes the same pictures as Darkroom."""

from __future__ import annotations

import base64
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest

from benchmarks.clips import make_clip
from benchmarks.load import alike_requests, closed_loop
from benchmarks.peers.closed_server import ClosedBatches, Waiting, create_app, next_closed
from models.spec.model import ModelSpec
from service.jobs.job import ImageToVideo, PictureRequest
from service.settings import ZOO, Settings
from service.worker.input import NO_INPUTS, Inputs
from service.worker.local import generate
from service.worker.opening import load_model
from tests.support.rig import make_request


def waiting(steps: int, guidance: float = 3.0) -> Waiting:
    return Waiting(make_request(num_inference_steps=steps, guidance_scale=guidance), NO_INPUTS)


def test_the_oldest_leads_and_its_equals_join_while_there_is_room() -> None:
    queue = [waiting(4), waiting(9), waiting(4, 1.0), waiting(4), waiting(4, 1.0)]
    first, other, *rest = queue
    assert next_closed(queue, lambda _: 4) == [first, rest[0], rest[2]], "2, 1 and 1 lanes; the guided one has no room"
    assert queue == [other, rest[1]]
    assert next_closed(queue, lambda _: 1) == [other], "the first has room in any case"


def test_pictures_are_those_of_darkroom(sdxl_folder: Path, tmp_path: Path) -> None:
    spec = ModelSpec.read(sdxl_folder)
    settings = Settings(data=tmp_path, models=(sdxl_folder,), backend="torch", threads=1)
    requests = [
        make_request(model=spec.name, seed=i, num_inference_steps=steps, guidance_scale=guidance)
        for i, (steps, guidance) in enumerate([(2, 3.0), (3, 3.0), (2, 1.0)])
    ]
    batches = ClosedBatches(lambda spec: load_model(spec, settings), {spec.name: spec})
    try:
        answers = [batches.submit(request, NO_INPUTS) for request in requests]
        made = [answer.result(60) for answer in answers]
        refused = batches.submit(make_request(model=spec.name, scheduler="none such"), NO_INPUTS)
        with pytest.raises(ValueError, match="none such"):
            refused.result(60)
    finally:
        batches.close()
    assert made == [generate(settings, request, lambda *_: None) for request in requests]
    assert len(set(made)) == len(made)


class Recorded(ClosedBatches):
    """Makes nothing, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[PictureRequest | ImageToVideo, Inputs]] = []

    def submit(self, request: PictureRequest | ImageToVideo, inputs: Inputs) -> Future[bytes]:
        self.asked.append((request, inputs))
        answer = Future[bytes]()
        answer.set_result(b"made")
        return answer


async def test_it_takes_what_darkroom_takes(tmp_path: Path) -> None:
    batches, (turbo, clips) = Recorded(), (ModelSpec.read(ZOO / name) for name in ("emoji-xl-turbo", "emoji-svd"))
    app = create_app(Settings(data=tmp_path), batches)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        run = await closed_loop(client, alike_requests(2, 0, turbo), 1)
        await make_clip(client, clips, 5)
        assert (await client.get("/v1/jobs/1")).status_code == 404
    assert not run.faults and base64.b64decode(run.answers[0].picture) == b"made"
    pictures, (clip, inputs) = [request for request, _ in batches.asked[:2]], batches.asked[2]
    assert [(p.model, p.num_inference_steps) for p in pictures] == [(turbo.name, turbo.steps)] * 2
    assert isinstance(clip, ImageToVideo) and (clip.model, clip.seed, clip.frames) == (clips.name, 5, clips.frames)
    assert inputs.image is not None and inputs.image.shape[:2] == clips.sizes[0]
