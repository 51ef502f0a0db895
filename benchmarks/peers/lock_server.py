"""What most people would write first: FastAPI around diffusers' pipeline, one request at a time.

Nothing in here is slow on purpose: the pipeline has a thread of its own, so that the event loop stays free; requests
wait in the order of their arrival; pictures are encoded while the next one is being made; OpenMP does not spin (the
environment says so).
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvicorn
from fastapi import FastAPI

from benchmarks.peers.pipeline import ImagesRequest, Painter, encode


def create_app(painter: Painter) -> FastAPI:
    """The service."""
    app, lock = FastAPI(), asyncio.Lock()
    # One thread for all calls: OpenMP keeps a team of threads for every thread that ever called it.
    thread = ThreadPoolExecutor(1)

    @app.post("/v1/images/generations")
    async def generate(request: ImagesRequest) -> dict[str, Any]:
        async with lock:
            (picture,) = await asyncio.get_running_loop().run_in_executor(thread, painter.paint, [request])
        content = await asyncio.to_thread(encode, picture)
        return {"created": int(time.time()), "data": [{"b64_json": content}]}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main(
    model: Annotated[Path, typer.Option(help="A diffusers SDXL folder.")],
    port: Annotated[int, typer.Option()],
    threads: Annotated[int, typer.Option(help="Threads that one operation may use.")],
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of every picture.")],
) -> None:
    """Serve a diffusers pipeline behind a lock."""
    torch.set_num_threads(threads)
    uvicorn.run(create_app(Painter(model, *size)), port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
