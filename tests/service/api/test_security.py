"""API keys: who gets in, what is logged, and how long a guess takes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from models.spec.model import ModelSpec
from service.api import security
from service.api.security import ApiKeys
from service.settings import Settings
from tests.service.api.conftest import Server, run_server

KEYS = ("sk-first-key", "sk-second-key")
DIGESTS = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)


@pytest.fixture
def locked(tmp_path: Path, models: dict[str, ModelSpec]) -> Iterator[Server]:
    yield from run_server(Settings(data=tmp_path / "locked", api_keys=DIGESTS), models)


def test_only_who_has_a_key_gets_in(locked: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(openai.AuthenticationError) as caught:
            locked.openai.models.list()
        assert caught.value.code == "invalid_api_key"
        for key in KEYS:
            assert locked.openai.with_options(api_key=key).images.generate(prompt="x").data
        for headers in ({}, {"authorization": KEYS[0]}, {"authorization": "Bearer x"}, {"authorization": "Basic x"}):
            for method, path in (("POST", "/v1/jobs"), ("GET", "/v1/videos"), ("GET", "/v1/none")):
                answer = httpx.request(method, f"{locked.url}{path}", headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health/live", "/metrics", "/openapi.json"):
            assert httpx.get(f"{locked.url}{path}").status_code == 200
    assert 'darkroom_refused_total{reason="unauthorized"}' in locked.http.get("/metrics").text
    ours = [record for record in caplog.records if record.name.split(".")[0] in ("darkroom", "service", "uvicorn")]
    logged = "\n".join(str(vars(record)) for record in ours)
    assert "/v1/models" in logged and not any(secret in logged for secret in (*KEYS, *DIGESTS))


def test_without_keys_everybody_gets_in() -> None:
    assert ApiKeys(()).admit("") and not ApiKeys(DIGESTS).admit("")
    assert ApiKeys(DIGESTS).admit("bearer  sk-first-key ") and not ApiKeys(DIGESTS).admit("Bearer sk-first-ke")
    assert not ApiKeys(DIGESTS).admit(f"Bearer {DIGESTS[0]}"), "the digest is no key"
    assert not ApiKeys(DIGESTS).admit("Bearer \ud800")


@pytest.mark.parametrize("wrong", ["sk-in-the-open", DIGESTS[0].upper(), ""])
def test_a_key_instead_of_its_digest_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(ValueError, match="entry 2") as caught:
        ApiKeys((DIGESTS[0], wrong))
    assert not wrong or wrong not in str(caught.value)


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    original = security.hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return original(given, known)

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    keys = ApiKeys(DIGESTS)
    for guess in (KEYS[0], "wrong", DIGESTS[0][:63] + "x"):
        compared.clear()
        keys.admit(f"Bearer {guess}")
        assert len(compared) == len(DIGESTS) and all(len(given) == 32 for given, _ in compared)


def test_a_key_costs_little() -> None:
    keys = ApiKeys(DIGESTS * 50)
    began = time.process_time()
    for _ in range(100):
        keys.admit("Bearer guess")
    assert (time.process_time() - began) / 100 < 0.001
