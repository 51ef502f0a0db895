"""A worker on a real store and bus in a folder, run tick by tick, with networks that tests can watch and break."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.families.row import Denoiser
from models.families.text_to_image import Decoder
from models.spec.model import ModelSpec
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import ImageToVideo, Job, PictureRequest, TextToImage, Upscaling
from service.jobs.sqlite import SQLiteStore
from service.metrics import WorkerMetrics
from service.worker.batch import Stage
from service.worker.input import NO_INPUTS, Inputs
from service.worker.loaded import LoadedModel
from service.worker.loop import Worker
from service.worker.media import encode_picture
from service.worker.picture import Picture
from service.worker.residency import Adapted, Residency
from service.worker.runner import Runner

NAME = "worker-under-test"


def make_request(**changes: Any) -> TextToImage:
    """A request for the tiny model."""
    values: dict[str, Any] = {
        "model": "tiny-xl",
        "prompt": "a red cat",
        "width": 32,
        "height": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "scheduler": "euler",
        "seed": 7,
    }
    return TextToImage(**{**values, **changes})


def make_clip(image: str = "", **changes: Any) -> ImageToVideo:
    """A request for the tiny video model, which makes three frames at a time."""
    values: dict[str, Any] = {
        "model": "tiny-svd",
        "width": 32,
        "height": 32,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "scheduler": "euler",
        "seed": 7,
        "image": image,
        "frames": 3,
        "fps": 7,
        "output_compression": 90,
    }
    return ImageToVideo(**{**values, **changes})


def make_upscaling(image: str = "", **changes: Any) -> Upscaling:
    """A request for the tiny upscaler: 16 x 16 pixels to 64 x 64."""
    values: dict[str, Any] = {
        "model": "tiny-upscaler",
        "prompt": "a red cat",
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "scheduler": "ddim",
        "seed": 7,
        "image": image,
        "factor": 4,
        "noise_level": 20,
    }
    return Upscaling(**{**values, **changes})


def a_picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
    """Smooth levels: uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    levels = [rows * 7 + seed * 40, columns * 5, rows * 2 + columns * 3]
    return (np.stack(levels, axis=-1) % 256).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A png of [H, W, 3] or [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def denoised(loaded: LoadedModel, request: PictureRequest, seed: int, inputs: Inputs = NO_INPUTS) -> Picture:
    """One picture of the request, ready to be decoded, made with nothing beside it."""
    picture = Picture(request, seed, 0.0, loaded, loaded.numerics(request.deterministic), inputs)
    runner = Runner()
    runner.encode([picture])
    while picture.stage is Stage.DENOISE:
        runner.denoise([picture])
    return picture


def alone(loaded: LoadedModel, request: PictureRequest, inputs: Inputs = NO_INPUTS) -> list[bytes]:
    """The bytes of the request's pictures, each made with nothing beside it."""
    pictures = [denoised(loaded, request, seed, inputs) for seed in range(request.seed, request.seed + request.n)]
    return [encode_picture(pixels_of(picture), request, picture.seed) for picture in pictures]


def pixels_of(picture: Picture) -> NDArray[np.uint8]:
    """A denoised picture, decoded with nothing beside it."""
    Runner().decode([picture])
    assert picture.pixels is not None
    return picture.pixels


@dataclass
class Watched:
    """A network that counts its calls, and first shows their inputs to whoever wants to raise."""

    network: Denoiser | Decoder
    before: Callable[..., None] = lambda *_: None
    batches: list[int] = field(default_factory=list)
    """Lanes of every call that returned, padding included."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.before(*inputs)
        output = self.network(*inputs)
        self.batches.append(len(inputs[0]))
        return output


def watch(loaded: LoadedModel) -> tuple[LoadedModel, Watched, Watched]:
    """The same model, its UNet and its decoder watched."""
    unet, decoder = Watched(loaded.model.denoisers["unet"]), Watched(loaded.model.decoder)
    model = replace(loaded.model, denoisers={"unet": unet}, decoder=decoder)
    return replace(loaded, model=model), unet, decoder


def refuses(loaded: LoadedModel, prompt: str) -> Callable[..., None]:
    """For :class:`Watched` around a UNet: raises when a lane of this prompt is in the batch."""
    poison = loaded.model.conditioner.encode(prompt, 32, 32).context

    def look(_x: Tensor, _c_noise: Tensor, context: Tensor, _vector: Tensor) -> None:
        if any(torch.equal(lane, poison) for lane in context):
            raise ArithmeticError("not this one")

    return look


class Rig:
    """A worker, and the server's side of its store and bus."""

    def __init__(
        self,
        folder: Path,
        loaded: LoadedModel,
        load: Callable[[ModelSpec], LoadedModel] | None = None,
        others: Sequence[LoadedModel] = (),
        adapted: Adapted | None = None,
    ) -> None:
        self.loaded, self.unet, self.decoder = watch(loaded)
        models = {model.model.spec.name: model for model in (self.loaded, *others)}
        self.store, self.api = SQLiteStore(folder / "jobs.sqlite3"), Bus(folder / "bus")
        self.artifacts, self.metrics = ArtifactStore(folder / "artifacts"), WorkerMetrics()
        self.models = specs = {name: model.model.spec for name, model in models.items()}
        self.residency = Residency(specs, load or (lambda spec: models[spec.name]), adapted=adapted)
        self.bus = Bus(folder / "bus")
        self.worker = self._worker(NAME)

    def _worker(self, name: str) -> Worker:
        shared = (self.store, self.bus, self.artifacts, self.residency, self.metrics)
        return Worker(name, *shared, 30.0, list(self.models))

    def lose_worker(self) -> None:
        """The worker is lost with all its leases, and another takes its place."""
        self.store.reap(NAME)
        self.worker.close()
        self.worker = self._worker(f"{NAME}-2")

    def close(self) -> None:
        """Stop in the order of ``run_worker``."""
        self.worker.close()
        self.residency.close()
        for part in (self.bus, self.api, self.store):
            part.close()

    def submit(self, **changes: Any) -> Job:
        """Accept a job as the API does."""
        return self.send(make_request(**changes))

    def send(self, request: PictureRequest | ImageToVideo, **how: Any) -> Job:
        """Accept any request as the API does; ``how`` are its priority and deadline."""
        job = self.store.submit(request, **how)
        self.api.publish(Event("submitted", job.id))
        return job

    def put(self, pixels: NDArray[np.uint8]) -> str:
        """Store an input picture; returns its name."""
        return self.artifacts.put(png(pixels))

    def cancel(self, job: Job, tell: bool = True) -> None:
        """Cancel a job as the API does; without ``tell`` the event was lost."""
        self.store.cancel(job.id)
        if tell:
            self.api.publish(Event("cancelled", job.id))

    def get(self, job: Job) -> Job:
        """The job as the store has it now."""
        found = self.store.get(job.id)
        assert found is not None
        return found

    def contents(self, job: Job) -> list[bytes]:
        """The bytes of a completed job."""
        return [self.artifacts.open(result.content_sha256) for result in self.get(job).results]

    def tick_until(self, holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Run the worker until something holds."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            self.worker.tick()

    def finish(self, *jobs: Job) -> None:
        """Run the worker until these jobs have ended."""
        self.tick_until(lambda: all(self.get(job).state.final for job in jobs))

    def value(self, name: str, **labels: str) -> float:
        """A metric; 0 when it was never touched."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0
