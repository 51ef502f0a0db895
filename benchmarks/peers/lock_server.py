"""What most people would write first: FastAPI around diffusers' pipeline, one request at a time.

Nothing in here is slow on purpose: the pipeline runs in inference mode on a thread of its own, so that the event loop
stays free; requests wait in the order of their arrival; pictures are encoded while the next one is being made; no
progress bar is drawn, no watermark is drawn in, OpenMP does not spin (the environment says so).
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvicorn
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

SCHEDULERS = {
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
}


class ImagesRequest(BaseModel):
    """The part of the contract that the benchmark uses."""

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    scheduler: str


class Painter:
    """The pipeline. It keeps state during a call, so only one call may run."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._size = {"width": width, "height": height}
        self._pipeline = StableDiffusionXLPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            folder, torch_dtype=torch.float32, add_watermarker=False, local_files_only=True
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._scheduler_config = self._pipeline.scheduler.config

    def paint(self, request: ImagesRequest) -> Image.Image:
        """One picture."""
        # Schedulers count their steps, so every call gets its own.
        self._pipeline.scheduler = SCHEDULERS[request.scheduler].from_config(self._scheduler_config)
        with torch.inference_mode():  # here and not at start: the mode belongs to the thread
            result = self._pipeline(
                prompt=request.prompt,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator().manual_seed(request.seed),
                **self._size,
            )
        picture: Image.Image = result.images[0]
        return picture


def create_app(painter: Painter) -> FastAPI:
    """The service."""
    app, lock = FastAPI(), asyncio.Lock()
    # One thread for all calls: OpenMP keeps a team of threads for every thread that ever called it.
    thread = ThreadPoolExecutor(1)

    @app.post("/v1/images/generations")
    async def generate(request: ImagesRequest) -> dict[str, Any]:
        async with lock:
            picture = await asyncio.get_running_loop().run_in_executor(thread, painter.paint, request)
        content = await asyncio.to_thread(_encode, picture)
        return {"created": int(time.time()), "data": [{"b64_json": content}]}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def _encode(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


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
