"""Whatever goes wrong, the answer is the same envelope."""

from __future__ import annotations

import pytest

from service.errors import Unavailable
from tests.service.api.conftest import Server


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/images/generations", 405, "method_not_allowed"),
        ("GET", "/broken", 500, "internal_error"),
    ],
)
def test_every_error_is_an_envelope(shared: Server, method: str, path: str, status: int, code: str) -> None:
    answer = shared.http.request(method, path)
    assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "code", "param"}
    assert answer.json()["error"]["code"] == code and "secret" not in answer.text


BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[]", 400),
    (b"null", 400),
    (b'"prompt"', 400),
    (b"[" * 100_000, 400),
    (b'{"prompt": ' + b"9" * 5000 + b"}", 400),
    (b'{"prompt": "\\ud800"}', 400),
    (b'{"prompt": "x", "\\ud800": 1}', 400),
    (b'{"prompt": "x", "guidance_scale": NaN}', 400),
    (b'{"prompt": "x", "guidance_scale": Infinity}', 400),
    (b'{"prompt": "x", "guidance_scale": 1e999}', 400),
    (b'{"prompt": ["x"]}', 400),
    (b'{"prompt": "x", "model": {}}', 400),
]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations"])
@pytest.mark.parametrize(("body", "status"), BODIES)
def test_hostile_bodies(shared: Server, path: str, body: bytes, status: int) -> None:
    answer = shared.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("path", "size"), [("/v1/jobs", 33 * 2**20), ("/v1/images/generations", 2_000_000)])
def test_bodies_that_are_too_large(shared: Server, path: str, size: int) -> None:
    body = b'{"prompt": "' + b"x" * size + b'"}'
    answer = shared.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_json_needs_its_content_type(shared: Server) -> None:
    answer = shared.http.post("/v1/jobs", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and "application/json" in answer.json()["error"]["message"]


def test_a_store_that_is_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("the server does not answer")

    assert server.http.post("/v1/jobs", json={"prompt": "x"}).status_code == 202
    for verb in ("submit", "get", "list", "cancel"):
        monkeypatch.setattr(server.store, verb, away)
    for method, path in (("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/a"), ("DELETE", "/v1/jobs/a")):
        answer = server.http.request(method, path, json={"prompt": "x"} if method == "POST" else None)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    monkeypatch.undo()
    assert server.http.get("/v1/jobs").status_code == 200
