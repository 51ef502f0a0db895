"""The benchmark's load: the same for every server, sent as promised, and what comes back is counted right."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections import Counter

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks import load
from benchmarks.load import (
    Request,
    alike_requests,
    arrival_times,
    closed_loop,
    make_requests,
    open_loop,
    warm_up_requests,
)
from models.spec.model import ModelSpec
from service.settings import ZOO

SPEC = ModelSpec.read(ZOO / "emoji-xl")


class FakeServer:
    """Answers after 10 ms with a picture whose grey is the seed, and 500 to the seed 13."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.open = self.most_open = 0

    async def __call__(self, http: httpx.Request) -> httpx.Response:
        seed = int(json.loads(http.content)["seed"])
        self.order.append(seed)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0.01)
        self.open -= 1
        if seed == 13:
            return httpx.Response(500, text="out of luck")
        buffer = io.BytesIO()
        Image.fromarray(np.full((2, 2, 3), seed, np.uint8)).save(buffer, "png")
        return httpx.Response(200, json={"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]})

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(self))


def requests_of(*seeds: int) -> list[Request]:
    return [Request("m", "a", 4 + seed, 1.0, seed, "euler") for seed in seeds]


def test_requests_are_drawn_once_and_hold_every_kind_equally_often() -> None:
    requests = make_requests(64, 1, SPEC)
    assert requests == make_requests(64, 1, SPEC) != make_requests(64, 2, SPEC)
    kinds = Counter((request.num_inference_steps, request.guidance_scale) for request in requests)
    assert len(kinds) == len(load.STEPS) * len(load.GUIDANCES)
    assert set(kinds.values()) == {8}
    measured = {request.prompt for request in make_requests(2000, 3, SPEC)}
    assert len(measured) == len(load.CONCEPTS) * len(load.STYLES)
    assert not measured & {request.prompt for request in warm_up_requests(SPEC)}
    alike = alike_requests(20, 3, SPEC)
    assert {(r.model, r.num_inference_steps, r.guidance_scale) for r in alike} == {
        ("emoji-xl", SPEC.steps, SPEC.guidance)
    }
    assert len({request.seed for request in alike}) == 20


def test_arrivals_are_a_poisson_process_of_the_asked_rate() -> None:
    times = np.array(arrival_times(4000, 5.0, 1))
    gaps = np.diff(times)
    assert times.tolist() == arrival_times(4000, 5.0, 1)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


async def test_a_closed_loop_keeps_its_clients_busy_and_the_order_of_answers() -> None:
    server = FakeServer()
    async with server.client() as client:
        run = await closed_loop(client, requests_of(*range(10)), 4)
    assert server.most_open == 4
    assert [answer.request.seed for answer in run.answers] == list(range(10))
    assert len(run.latencies) == 10 and min(run.latencies) >= 0.01
    assert len(run.short_latencies) == 1


async def test_an_open_loop_sends_at_its_times_and_waits_for_nobody() -> None:
    server = FakeServer()
    async with server.client() as client:
        run = await open_loop(client, requests_of(1, 2, 3), [0.1, 0.0, 0.1])
    assert server.order[0] == 2
    assert server.most_open == 2
    assert run.seconds >= 0.11
    assert max(run.latencies) < run.seconds


async def test_a_fault_is_told_and_is_no_latency() -> None:
    async with FakeServer().client() as client:
        run = await closed_loop(client, requests_of(1, 13), 2)
    assert run.faults == ["500: out of luck"]
    assert len(run.latencies) == 1
