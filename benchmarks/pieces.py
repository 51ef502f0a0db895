"""One picture or clip of a shipped model in this process, item by item, on the clock."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.clips import first_frame
from models.spec.model import ModelSpec
from service.jobs.job import ImageToVideo, TextToImage
from service.settings import Settings
from service.worker.batch import Stage
from service.worker.clip import Clip
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel
from service.worker.opening import load_model
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.runner import Preview, Runner

FPS = 7


class Bench:
    """A model that is open, with the engines below ``data`` where it has any."""

    def __init__(self, folder: Path, data: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.spec = ModelSpec.read(folder)
        self.loaded: LoadedModel = load_model(self.spec, Settings(data=data, threads=threads, engines="wait"))
        self.runner = Runner()

    def piece(self, seed: int, partial_images: int = 0) -> Piece:
        """A piece with the model's own settings that is not begun."""
        spec = self.spec
        width, height = spec.sizes[0]
        settings = {
            "model": spec.name,
            "prompt": "red apple, 3d",
            "width": width,
            "height": height,
            "num_inference_steps": spec.steps,
            "guidance_scale": spec.guidance,
            "scheduler": spec.solver,
            "seed": seed,
        }
        common = (seed, 0.0, self.loaded, self.loaded.strict)
        if spec.system.task == "image-to-video":
            image = np.asarray(Image.open(io.BytesIO(first_frame((width, height)))))
            clip = ImageToVideo.model_validate({**settings, "image": "", "frames": spec.frames, "fps": FPS})
            return Clip(clip, *common, Inputs(image))
        return Picture(TextToImage.model_validate({**settings, "partial_images": partial_images}), *common)

    def run(self, piece: Piece) -> Iterator[tuple[Stage, float, list[Preview]]]:
        """Make a piece; of every item its stage, its seconds and the previews that came with it."""
        while piece.pixels is None:
            stage, began = piece.stage, time.perf_counter()
            shown = self.runner.run(stage, [piece])
            yield stage, time.perf_counter() - began, shown

    def longest_item_s(self) -> float:
        """Seconds of the longest item of a piece that runs alone; one goes before it and does not count."""
        for _ in self.run(self.piece(0)):
            pass
        return max(seconds for _, seconds, _ in self.run(self.piece(1)))
