"""Finished files: whole, in parts, and not again."""

from __future__ import annotations

import pytest

from tests.service.api.conftest import Server, square


@pytest.fixture
def address(shared: Server) -> str:
    job = shared.http.post("/v1/jobs", json={"prompt": "x", "seed": 1}).json()
    shared.until(lambda: shared.http.get(f"/v1/jobs/{job['id']}").json()["state"] == "completed")
    return f"/v1/jobs/{job['id']}/results/0"


WHOLE = square(1, "png")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=5-", 5, len(WHOLE) - 1),
        ("bytes=-4", len(WHOLE) - 4, len(WHOLE) - 1),
        ("bytes=-100000", 0, len(WHOLE) - 1),
        ("bytes=0-99999", 0, len(WHOLE) - 1),
    ],
)
def test_parts(shared: Server, address: str, asked: str, first: int, last: int) -> None:
    answer = shared.http.get(address, headers={"range": asked})
    assert answer.status_code == 206 and answer.content == WHOLE[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(WHOLE)}"


@pytest.mark.parametrize("asked", ["bytes=100000-", "bytes=9-5", "bytes=-0"])
def test_parts_that_are_not_there(shared: Server, address: str, asked: str) -> None:
    answer = shared.http.get(address, headers={"range": asked})
    assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{len(WHOLE)}"


@pytest.mark.parametrize("asked", ["bytes=", "bytes=-", "bytes=0-1,4-5", "lines=0-1", "x"])
def test_other_ranges_are_passed_over(shared: Server, address: str, asked: str) -> None:
    answer = shared.http.get(address, headers={"range": asked})
    assert answer.status_code == 200 and answer.content == WHOLE and answer.headers["accept-ranges"] == "bytes"


def test_what_is_there_is_not_sent_again(shared: Server, address: str) -> None:
    etag = shared.http.get(address).headers["etag"]
    again = shared.http.get(address, headers={"if-none-match": etag})
    assert again.status_code == 304 and again.content == b""
    assert shared.http.get(address, headers={"if-none-match": '"other"'}).status_code == 200
