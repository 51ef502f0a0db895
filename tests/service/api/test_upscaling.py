"""Pictures to be enlarged: what a request becomes, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from models.spec.model import ModelSpec
from service.jobs.job import Upscaling
from service.settings import Settings
from tests.service.api.conftest import Server, run_server, write_ldm_upscaler, write_model, write_upscaler

TASK = {"task": "upscaling"}


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model that draws and an upscaler, whose pictures may have 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("enlarging")
    write_model(folder / "tiny")
    write_upscaler(folder / "tiny-upscaler")
    write_ldm_upscaler(folder / "tiny-ldm")
    specs = {name: ModelSpec.read(folder / name) for name in ("tiny", "tiny-upscaler", "tiny-ldm")}
    yield from run_server(Settings(data=folder / "data", max_queued=1000), specs)


def image(width: int = 16, height: int = 16) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def accepted(server: Server, **body: Any) -> Upscaling:
    answer = server.http.post("/v1/jobs", json={**TASK, **body})
    assert answer.status_code == 202, answer.text
    job = server.store.get(answer.json()["id"])
    assert job is not None and isinstance(job.request, Upscaling)
    return job.request


def test_a_job_is_four_times_as_large(enlarging: Server) -> None:
    request = accepted(enlarging, image=image())
    assert (request.model, request.prompt, request.noise_level) == ("tiny-upscaler", "", 20)
    assert (request.width, request.height, request.factor) == (64, 64, 4)
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == (75, 9.0, "ddim")
    assert request.inputs == (request.image,)
    # As many pixels in another shape, and by the model's name alone.
    body = {"image": image(32, 8), "prompt": "a cat", "noise_level": 0, "negative_prompt": "dog", "n": 2}
    answer = enlarging.http.post("/v1/jobs", json={"model": "tiny-upscaler", **body}).json()["request"]
    assert (answer["task"], answer["width"], answer["height"]) == ("upscaling", 128, 32)
    assert (answer["noise_level"], answer["negative_prompt"], answer["n"]) == (0, "dog", 2)


def test_one_that_takes_no_noise_and_reads_no_prompt(enlarging: Server) -> None:
    request = accepted(enlarging, image=image(), model="tiny-ldm", prompt="a cat")
    assert (request.noise_level, request.guidance_scale, request.num_inference_steps) == (0, 1.0, 100)
    for field, value in (("noise_level", 1), ("guidance_scale", 1.5)):
        answer = enlarging.http.post("/v1/jobs", json={**TASK, "model": "tiny-ldm", "image": image(), field: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_a_picture_is_kept_as_it_is(enlarging: Server) -> None:
    kept = accepted(enlarging, image=image(13, 9))
    with Image.open(io.BytesIO(enlarging.painter.artifacts.open(kept.image))) as picture:
        assert picture.size == (13, 9) and (kept.width, kept.height) == (52, 36)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "image", "upscaling begins from a picture"),
        ({"image": image(17, 16)}, "image", "17x16 pixels; model 'tiny-upscaler' enlarges pictures of at most 256"),
        ({"image": "AAAA"}, "image", "none of PNG"),
        ({"image": image(), "noise_level": 351}, "noise_level", "351 is over the limit of 350"),
        ({"image": image(), "noise_level": -1}, "noise_level", "greater than or equal to 0"),
        ({"image": image(), "noise_level": 0.5}, "noise_level", "integer"),
        ({"image": image(), "size": "64x64"}, "size", "no field of upscaling"),
        ({"image": image(), "strength": 0.5}, "strength", "no field of upscaling"),
        ({"image": image(), "mask": image()}, "mask", "no field of upscaling"),
        ({"image": image(), "partial_images": 1}, "partial_images", "no field of upscaling"),
        ({"image": image(), "model": "tiny"}, "model", "'tiny' does text-to-image"),
    ],
)
def test_what_is_refused(enlarging: Server, body: dict[str, Any], param: str, said: str) -> None:
    answer = enlarging.http.post("/v1/jobs", json={**TASK, **body})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"], error


def test_an_upscaler_does_nothing_else(enlarging: Server) -> None:
    model = {"model": "tiny-upscaler"}
    drawn = enlarging.http.post("/v1/images/generations", json={**model, "prompt": "x"})
    edited = enlarging.http.post("/v1/images/edits", json={**model, "prompt": "x", "image": image()})
    for answer in (drawn, edited):
        error = answer.json()["error"]
        assert answer.status_code == 400 and "'tiny-upscaler' does upscaling, not" in error["message"], error
    noisy = enlarging.http.post("/v1/jobs", json={"prompt": "x", "noise_level": 20}).json()["error"]
    assert noisy["message"] == "noise_level is no field of text-to-image"
    shown = enlarging.http.get("/v1/models/tiny-upscaler").json()
    assert (shown["task"], shown["capabilities"], shown["sizes"]) == ("upscaling", ["upscaling"], ["64x64"])


def test_no_upscaler_is_installed(shared: Server) -> None:
    error = shared.http.post("/v1/jobs", json={**TASK, "image": image()}).json()["error"]
    assert error["code"] == "model_not_found" and "no model for upscaling" in error["message"]
