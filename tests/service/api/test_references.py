"""Pictures inside a body."""

from __future__ import annotations

import base64

import pytest
from pydantic_core import PydanticCustomError

from service.api.references import read_reference

CONTENT = b"\x89PNG and more"
TEXT = base64.b64encode(CONTENT).decode()
URL = f"data:image/png;base64,{TEXT}"


@pytest.mark.parametrize(
    "value",
    [
        CONTENT,
        [CONTENT],
        URL,
        TEXT,
        base64.encodebytes(CONTENT * 10).decode(),
        {"image_url": URL},
        {"image_url": {"url": URL}},
        {"image_url": URL, "file_id": None},
        {"b64_json": TEXT},
        [{"image_url": URL}],
    ],
)
def test_ways_to_send_a_picture(value: object) -> None:
    assert read_reference(value) in (CONTENT, CONTENT * 10)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://169.254.169.254/latest", "not fetched"),
        ("HTTPS://example.org/a.png", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ({"image_url": "https://example.org/a.png"}, "not fetched"),
        ("data:image/png,plain", "of the form"),
        ("data:" + "x" * 1000, "of the form"),
        ("data:image/png;base64," + TEXT[:-1], "no base64"),
        ("a cat!", "no base64"),
        ("ä" * 4, "no base64"),
        ([], "0 pictures"),
        ([CONTENT, CONTENT], "2 pictures"),
        ({"file_id": "f"}, "nothing else"),
        ({"image_url": URL, "b64_json": TEXT}, "nothing else"),
        ({}, "nothing else"),
        (5, "not int"),
        ({"image_url": 5}, "not int"),
    ],
)
def test_what_is_no_picture(value: object, said: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        read_reference(value)
    assert said in caught.value.message() and TEXT not in caught.value.message()


def test_none_is_none() -> None:
    assert read_reference(None) is None
