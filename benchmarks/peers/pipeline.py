"""diffusers' pipeline, as the peers call it. Nothing in here is slow on purpose: no progress bar and no watermark are
drawn, and it runs in inference mode."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
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

    @property
    def settings(self) -> tuple[int, float, str]:
        """What requests must have in common to be one call of the pipeline."""
        return self.num_inference_steps, self.guidance_scale, self.scheduler


class Painter:
    """The pipeline. It keeps state during a call, so only one call may run."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._size = {"width": width, "height": height}
        self._pipeline = StableDiffusionXLPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            folder, torch_dtype=torch.float32, add_watermarker=False, local_files_only=True
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._scheduler_config = self._pipeline.scheduler.config

    def paint(self, requests: Sequence[ImagesRequest]) -> list[Image.Image]:
        """One picture of each request; all have the same settings."""
        first = requests[0]
        # Schedulers count their steps, so every call gets its own.
        self._pipeline.scheduler = SCHEDULERS[first.scheduler].from_config(self._scheduler_config)
        with torch.inference_mode():  # here and not at start: the mode belongs to the thread
            result = self._pipeline(
                prompt=[request.prompt for request in requests],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                generator=[torch.Generator().manual_seed(request.seed) for request in requests],
                **self._size,
            )
        pictures: list[Image.Image] = result.images
        return pictures


def encode(picture: Image.Image) -> str:
    """PNG in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()
