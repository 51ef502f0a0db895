"""The client that always has a clip in the making."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from benchmarks.clips import always_a_clip, first_frame
from models.spec.model import ModelSpec
from service.api.references import read_reference
from service.settings import ZOO


class FakeServer:
    """Makes a clip in a tenth of a second, and fails the one with the seed ``fails``."""

    def __init__(self, fails: int = -1) -> None:
        self.began: list[float] = []
        self.pictures: set[bytes] = set()
        self.most_open, self._fails = 0, fails

    async def __call__(self, http: httpx.Request) -> httpx.Response:
        now = time.perf_counter()
        if http.method == "POST":
            self.pictures.add(read_reference(json.loads(http.content)["image"]))
            self.began.append(now)
            self.most_open = max(self.most_open, sum(now - began < 0.1 for began in self.began))
            return httpx.Response(202, json={"id": str(len(self.began) - 1)})
        number = int(http.url.path.rpartition("/")[2])
        done = now - self.began[number] >= 0.1
        state = "failed" if number == self._fails else "completed"
        return httpx.Response(200, json={"finished_at": now if done else None, "state": state})

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(self))


SPEC = ModelSpec.read(ZOO / "emoji-svd")


async def test_one_clip_follows_the_other() -> None:
    server = FakeServer()
    async with server.client() as client, always_a_clip(client, SPEC) as seconds:
        while len(seconds) < 2:
            await asyncio.sleep(0.01)
    assert min(seconds) >= 0.1 and server.most_open == 1 and len(server.began) == 3
    assert server.pictures == {first_frame(SPEC.sizes[0])}


async def test_a_clip_that_fails_is_told() -> None:
    server = FakeServer(fails=1)
    async with server.client() as client:
        with pytest.raises(RuntimeError, match="no clip"):
            async with always_a_clip(client, SPEC):
                await asyncio.sleep(0.6)
