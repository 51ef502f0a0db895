"""A client that always has one clip in the making."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from models.spec.model import ModelSpec

POLL_S = 0.05


def first_frame(size: tuple[int, int]) -> bytes:
    """A PNG of ``size``: a disc on a gradient."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 128)], axis=-1).astype(np.uint8)
    picture[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(size) / 4) ** 2] = (240, 200, 40)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


def clip_body(spec: ModelSpec, seed: int) -> dict[str, Any]:
    """The job of one clip with the model's own settings."""
    return {"model": spec.name, "image": base64.b64encode(first_frame(spec.sizes[0])).decode(), "seed": seed}


async def make_clip(client: httpx.AsyncClient, spec: ModelSpec, seed: int) -> float:
    """Seconds from submission until one clip is there.

    Raises:
        RuntimeError: it was refused, or failed.
    """
    began = time.perf_counter()
    answer = await client.post("/v1/jobs", json=clip_body(spec, seed))
    if answer.status_code != httpx.codes.ACCEPTED:
        raise RuntimeError(f"no clip: {answer.status_code} {answer.text[:300]}")
    address = f"/v1/jobs/{answer.json()['id']}"
    while True:
        job = (await client.get(address)).json()
        if job["finished_at"] is not None:
            if job["state"] != "completed":
                raise RuntimeError(f"no clip: {job}")
            return time.perf_counter() - began
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def always_a_clip(client: httpx.AsyncClient, spec: ModelSpec) -> AsyncIterator[list[float]]:
    """Within the block one clip is in the making, from its first moment on; the list has the seconds of those that
    ended."""
    seconds: list[float] = []

    async def one_after_the_other() -> None:
        while True:
            seconds.append(await make_clip(client, spec, len(seconds)))

    task = asyncio.create_task(one_after_the_other())
    await asyncio.sleep(2 * POLL_S)
    try:
        yield seconds
    finally:
        task.cancel()
        done, _ = await asyncio.wait([task])
    for ended in done:
        if not ended.cancelled() and (error := ended.exception()) is not None:
            raise error
