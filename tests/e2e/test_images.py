"""One prompt at a time, through the stock client; and requests that are refused."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from tests.support.server import ServerProcess

PROMPT: dict[str, Any] = {"prompt": "a red cat", "seed": 11, "num_inference_steps": 4}


def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def generate(server: ServerProcess, **changes: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/images/generations", json={**PROMPT, **changes})
    assert answer.status_code == 200, answer.text
    (picture,) = answer.json()["data"]
    found: dict[str, Any] = picture
    return found


def test_the_stock_client_gets_a_picture(server: ServerProcess) -> None:
    with client(server) as openai:
        answer = openai.images.generate(
            prompt="a dog", n=2, size="32x32", extra_body={"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}
        )
        assert [model.id for model in openai.models.list()] == ["tiny-xl"]
    assert answer.data is not None and len(answer.data) == 2
    contents = [base64.b64decode(picture.b64_json or "") for picture in answer.data]
    assert contents[0] != contents[1]
    for content in contents:
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
            assert np.asarray(image).std() > 10, "an empty picture"


def test_the_seed_makes_the_picture(server: ServerProcess) -> None:
    first = generate(server)
    assert first["content_sha256"] == hashlib.sha256(base64.b64decode(first["b64_json"])).hexdigest()
    again = generate(server)
    assert again["content_sha256"] == first["content_sha256"] and again["job"] != first["job"]
    assert again["numerics_id"] == first["numerics_id"]
    changes: list[dict[str, Any]] = [
        {"seed": 12},
        {"prompt": "a dog"},
        {"num_inference_steps": 5},
        {"guidance_scale": 9.0},
        {"scheduler": "euler-ancestral"},
        {"negative_prompt": "cat"},
    ]
    others = [generate(server, **change)["content_sha256"] for change in changes]
    assert len({first["content_sha256"], *others}) == len(changes) + 1


def test_the_job_api_gives_the_same_bytes(onnx_server: ServerProcess) -> None:
    picture = generate(onnx_server)
    (job,) = onnx_server.finished([onnx_server.submit(**PROMPT)])
    (result,) = job["results"]
    content = onnx_server.http.get(result["url"]).content
    assert content == base64.b64decode(picture["b64_json"])
    assert hashlib.sha256(content).hexdigest() == result["content_sha256"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", None),
        ("prompt", 5),
        ("model", "unknown"),
        ("num_inference_steps", 0),
        ("num_inference_steps", "4"),
        ("num_inference_steps", 10_000),
        ("guidance_scale", -1.0),
        ("guidance_scale", 1e9),
        ("scheduler", "magic"),
        ("size", "31x32"),
        ("size", "large"),
        ("n", 0),
        ("n", 1000),
        ("seed", -1),
        ("output_format", "gif"),
        ("num_infrence_steps", 4),
    ],
)
def test_a_malformed_request_is_refused_by_name(onnx_server: ServerProcess, field: str, value: object) -> None:
    for address in ("/v1/images/generations", "/v1/jobs"):
        answer = onnx_server.http.post(address, json={**PROMPT, field: value})
        assert 400 <= answer.status_code < 500, answer.text
        error = answer.json()["error"]
        assert error["param"] == field and field in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a cat"', b"\xff\xfe", b'{"prompt": "a", "seed": NaN}'])
def test_a_body_that_is_no_request_is_refused(onnx_server: ServerProcess, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = onnx_server.http.post("/v1/images/generations", content=body, headers=headers)
    assert 400 <= answer.status_code < 500 and answer.json()["error"]["message"]


def test_after_all_that_it_goes_on(onnx_server: ServerProcess) -> None:
    pid, before = onnx_server.worker.pid, generate(onnx_server)["content_sha256"]
    with client(onnx_server) as openai:
        with pytest.raises(BadRequestError, match="scheduler"):
            openai.images.generate(prompt="a", extra_body={"scheduler": "magic"})
        with pytest.raises(NotFoundError, match="tiny-xl"):  # the message names what is installed
            openai.images.generate(prompt="a", model="unknown")
    assert generate(onnx_server)["content_sha256"] == before
    assert onnx_server.worker.pid == pid and onnx_server.ready()
