"""What a request may hold, value by value, and anything at all."""

from __future__ import annotations

import json

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.api.conftest import Server

BAD_VALUES = [
    ({"prompt": "x" * 4001}, "prompt", "4000"),
    ({"prompt": ""}, "prompt", "at least 1"),
    ({"n": 11}, "n", "10"),
    ({"n": 0}, "n", "1"),
    ({"n": "2"}, "n", "integer"),
    ({"n": True}, "n", "integer"),
    ({"num_inference_steps": 0}, "num_inference_steps", "1"),
    ({"num_inference_steps": 151}, "num_inference_steps", "150"),
    ({"guidance_scale": 30.5}, "guidance_scale", "30"),
    ({"guidance_scale": 0.5}, "guidance_scale", "1"),
    ({"seed": -1}, "seed", "0"),
    ({"seed": 2**63}, "seed", str(2**63 - 1)),
    ({"seed": 2**63 - 1, "n": 2}, "seed", str(2**63 - 1)),
    ({"size": "65x64"}, "size", "64x64, 64x32"),
    ({"size": "٦٤x٦٤"}, "size", "64x64, 64x32"),
    ({"scheduler": "heunish"}, "scheduler", "euler, "),
    ({"output_format": "svg"}, "output_format", "'png', 'jpeg' or 'webp'"),
    ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
    ({"output_compression": 101}, "output_compression", "100"),
    ({"priority": "urgent"}, "priority", "'interactive', 'standard' or 'batch'"),
    ({"deadline_s": 0}, "deadline_s", "greater than 0"),
    ({"deadline_s": 604801}, "deadline_s", "604800"),
    ({"background": "transparent"}, "background", "not supported"),
    ({"stream": True, "response_format": "url"}, "response_format", "cannot be streamed"),
    ({"partial_images": 4}, "partial_images", "3"),
    ({"decoder": "fast"}, "decoder", "only the full one"),
    ({"decoder": "best"}, "decoder", "'full' or 'fast'"),
    ({"loras": [{"name": "x"}]}, "loras", "installed: none"),
    ({"loras": [{"name": "x", "scale": 5}]}, "loras", "4"),
    ({"loras": [{"name": "x", "weight": 1}]}, "weight", "unknown field 'weight'"),
    ({"loras": "["}, "loras", "array"),
    ({"strength": 0.5}, "strength", "unknown field"),
    ({"svg": {}}, "svg", "not supported"),
    ({"frame_count": 4}, "frame_count", "not supported"),
    ({"promt": "y"}, "promt", "did you mean 'prompt'?"),
    ({"num_steps": 3}, "num_steps", "did you mean 'num_inference_steps'?"),
    ({"zzz": 3}, "zzz", "unknown field 'zzz'"),
]


@pytest.mark.parametrize(("change", "param", "said"), BAD_VALUES)
def test_bad_values_are_explained(shared: Server, change: dict[str, object], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.images.generate(prompt="x", extra_body=change)
    error = caught.value.body
    assert isinstance(error, dict) and error["type"] == "invalid_request_error"
    assert error["param"] == param and said in error["message"], error
    assert param in error["message"]


def test_missing_prompt(shared: Server) -> None:
    error = shared.http.post("/v1/images/generations", json={}).json()["error"]
    assert error["message"] == "prompt is required" and error["code"] == "missing_required_parameter"
    assert error["param"] == "prompt"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["prompt", "model", "n", "size", "seed", "guidance_scale", "scheduler", "output_format", "nn"])


@settings(max_examples=50, deadline=None)
@given(body=st.dictionaries(FIELDS, VALUES).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=50))
def test_any_body_is_answered(shared: Server, body: bytes) -> None:
    answer = shared.http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (202, 400, 404)
    assert (answer.json()["error"] is not None) == (answer.status_code >= 400)
