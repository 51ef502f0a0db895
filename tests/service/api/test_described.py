"""The OpenAPI document against the server: whatever it allows or forbids, the answer is never a fault of ours."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from models.spec.model import ModelSpec
from service.settings import Settings
from tests.service.api.conftest import Server, run_server, square

EXAMPLES = 5
"""Of each operation and mode."""

schemathesis.openapi.format(
    "byte", st.sampled_from([b64encode(square(9, "png")).decode(), "", "AAAA", "http://x/y.png"])
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, models: dict[str, ModelSpec]) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzzed") / "data"
    yield from run_server(Settings(data=folder, max_queued=100_000, sync_timeout_s=20), models)


def answered(server: Server, examples: int) -> Counter[int]:
    """Statuses of the answers to ``examples`` requests of each kind."""
    schema = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
    statuses: Counter[int] = Counter()

    for found in schema.get_all_operations():
        operation = found.ok()
        # An address alone cannot be wrong: every text is one.
        modes = list(GenerationMode) if operation.body or operation.query else [GenerationMode.POSITIVE]
        for mode in modes:

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                answer = case.call(base_url=server.url, timeout=30)
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                assert answer.status_code < 400 or "error" in answer.json()

            ask()
    return statuses


def test_no_request_breaks_the_server(fuzzed: Server) -> None:
    fuzzed.ready()
    statuses = answered(fuzzed, EXAMPLES)
    assert statuses[200] > 10 and statuses[400] > 40 and sum(statuses.values()) > 100, statuses
    assert fuzzed.openai.images.generate(prompt="x").data


@pytest.mark.slow
def test_nor_do_many(fuzzed: Server) -> None:
    fuzzed.ready()
    assert sum(answered(fuzzed, 250).values()) > 5000
