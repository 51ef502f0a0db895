"""Forms become the same bodies as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.api.body import described, nested
from service.api.schema import JobRequest
from service.errors import InvalidRequest
from tests.service.api.conftest import Server


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([("a", "1"), ("b", "2")], {"a": "1", "b": "2"}),
        ([("a[]", "1")], {"a": ["1"]}),
        ([("a[]", "1"), ("a[]", "2")], {"a": ["1", "2"]}),
        ([("a[0]", "1"), ("a[1]", "2")], {"a": ["1", "2"]}),
        ([("a[x]", "1"), ("a[y]", "2")], {"a": {"x": "1", "y": "2"}}),
        ([("a[][x]", "1"), ("a[][y]", "2"), ("a[][x]", "3")], {"a": [{"x": "1", "y": "2"}, {"x": "3"}]}),
        ([("a[[]", "1")], {"a[[]": "1"}),
        ([("", "1")], {"": "1"}),
    ],
)
def test_names_of_parts(parts: list[tuple[str, Any]], found: dict[str, Any]) -> None:
    assert nested(parts) == found


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a[]", "a"), ("a", "a[]"), ("a[x]", "a[x]"), ("a[x]", "a[]"), ("a", "a[x]")]
)
def test_a_name_in_two_ways(names: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        nested([(name, "1") for name in names])


def test_the_description_stands_alone() -> None:
    content = described(JobRequest)["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"} and "$ref" not in json.dumps(content)
    assert "strength" in content["application/json"]["schema"]["properties"]


def test_adapters_in_a_form(shared: Server) -> None:
    for fields in ({"loras[][name]": "ink", "loras[][scale]": "0.5"}, {"loras": '[{"name": "ink"}]'}):
        error = shared.http.post("/v1/jobs", data={"prompt": "x", **fields}).json()["error"]
        assert "'ink' is not installed" in error["message"], "it was read as a list of one"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A" * 100_000),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 200),
        ("application/x-www-form-urlencoded", b"prompt=%ff&prompt=%00"),
        ("application/x-www-form-urlencoded", b"&" * 5000),
        ("text/plain", b"prompt=x"),
    ],
)  # fmt: skip
def test_hostile_forms(shared: Server, content_type: str, body: bytes) -> None:
    for path in ("/v1/jobs", "/v1/images/edits", "/v1/videos"):
        answer = shared.http.post(path, content=body, headers={"content-type": content_type})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_large_body_does_not_hold_up_others(shared: Server) -> None:
    """Twenty megabytes of base64 are parsed while others are served."""
    body = json.dumps({"prompt": "x", "image": "A" * 20_000_000})

    async def both() -> tuple[int, int]:
        large = asyncio.to_thread(
            shared.http.post, "/v1/jobs", content=body, headers={"content-type": "application/json"}
        )
        task = asyncio.create_task(large)
        served = 0
        while not task.done():
            await asyncio.to_thread(shared.http.get, "/health/live")
            served += 1
        return (await task).status_code, served

    status, served = asyncio.run(both())
    assert status == 400 and served > 3
