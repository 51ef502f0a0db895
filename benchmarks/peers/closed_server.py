"""Darkroom's networks behind batching by request: those that are equal in model, size and steps are collected and run
together from the first step to the last, and nobody joins on the way.

Validation, rows, steps, decoding and encoding are Darkroom's own code; guidance may differ within a batch, as in
Darkroom. What leads is the oldest request, so that clips and pictures take turns in the order of their arrival. The
model has a thread of its own, and so have media.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException

from models.spec.model import ModelSpec
from service.api.inputs import keep_inputs
from service.api.resolve import resolve
from service.api.schema import Generation, ImagesRequest, JobRequest
from service.jobs.artifacts import ArtifactStore
from service.jobs.job import ImageToVideo, PictureRequest
from service.settings import Settings, installed_models
from service.worker.batch import Stage
from service.worker.clip import Clip
from service.worker.input import Inputs, read_inputs
from service.worker.loaded import LoadedModel
from service.worker.media import encode_picture
from service.worker.opening import load_model
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.runner import Runner
from service.worker.video import encode_clip


@dataclass(frozen=True)
class Waiting:
    """A request that is not begun."""

    request: PictureRequest | ImageToVideo
    inputs: Inputs
    answer: Future[bytes] = field(default_factory=Future)

    @property
    def bucket(self) -> tuple[str, int, int, int]:
        """What requests must have in common to be run together."""
        request = self.request
        return request.model, request.width, request.height, request.num_inference_steps

    @property
    def lanes(self) -> int:
        """Lanes of each of its steps."""
        return 2 if self.request.guidance_scale > 1.0 else 1


def next_closed(queue: list[Waiting], max_lanes: Callable[[str], int]) -> list[Waiting]:
    """Take the oldest request out of the queue, and the others of its bucket that have room, oldest first.

    Args:
        queue: in the order of arrival, not empty.
        max_lanes: bound of a batch, by model.
    """
    first, room = queue[0], max_lanes(queue[0].request.model)
    batch: list[Waiting] = []
    for waiting in [other for other in queue if other.bucket == first.bucket]:
        if not batch or waiting.lanes <= room:
            batch.append(waiting)
            queue.remove(waiting)
            room -= waiting.lanes
    return batch


class ClosedBatches:
    """The queue and the thread that works it off."""

    def __init__(self, load: Callable[[ModelSpec], LoadedModel], models: dict[str, ModelSpec]) -> None:
        self._load, self._specs, self._models = load, models, dict[str, LoadedModel]()
        self._queue: list[Waiting] = []
        self._changed, self._over = threading.Condition(), False
        self._runner, self._media = Runner(), ThreadPoolExecutor(1, thread_name_prefix="media")
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def submit(self, request: PictureRequest | ImageToVideo, inputs: Inputs) -> Future[bytes]:
        """The encoded result, in time."""
        waiting = Waiting(request, inputs)
        with self._changed:
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self) -> None:
        """Stop behind the batch that runs."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()
        self._media.shutdown()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._over)
                if self._over:
                    return
                batch = next_closed(self._queue, lambda model: self._model(model).strict.max_lanes)
            try:
                self._run(batch)
            except Exception as error:  # a batch that fails must not end the server
                for waiting in batch:
                    waiting.answer.set_exception(error)

    def _run(self, batch: list[Waiting]) -> None:
        pieces = [self._piece(waiting) for waiting in batch]
        while left := [piece for piece in pieces if piece.pixels is None]:
            stage, most = left[0].stage, left[0].key.max_lanes
            for first in range(0, len(left), most if stage is not Stage.DENOISE else len(left)):
                self._runner.run(stage, left[first : first + most])
        for waiting, piece in zip(batch, pieces, strict=True):
            self._media.submit(_answer, waiting, piece)

    def _piece(self, waiting: Waiting) -> Piece:
        loaded, request = self._model(waiting.request.model), waiting.request
        common = (request.seed, time.time(), loaded, loaded.numerics(request.deterministic), waiting.inputs)
        return Clip(request, *common) if isinstance(request, ImageToVideo) else Picture(request, *common)

    def _model(self, name: str) -> LoadedModel:
        if name not in self._models:
            self._models[name] = self._load(self._specs[name])
        return self._models[name]


def _answer(waiting: Waiting, piece: Piece) -> None:
    request, pixels = waiting.request, piece.pixels
    try:
        if pixels is None:
            raise ValueError("a piece is answered before it is decoded")
        if isinstance(request, ImageToVideo):
            waiting.answer.set_result(encode_clip(pixels, request, request.seed).content)
        else:
            waiting.answer.set_result(encode_picture(pixels, request, request.seed))
    except Exception as error:
        waiting.answer.set_exception(error)


def create_app(settings: Settings, batches: ClosedBatches) -> FastAPI:
    """The service: pictures while the client waits, and jobs of any task."""
    models, artifacts = installed_models(settings), ArtifactStore(settings.artifacts_address)
    jobs: list[Future[bytes]] = []

    def begin(body: Generation) -> Future[bytes]:
        request = resolve(body, models, keep=partial(keep_inputs, artifacts))
        return batches.submit(request, read_inputs(request, artifacts))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        yield
        batches.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/images/generations")
    async def generate(body: ImagesRequest) -> dict[str, Any]:
        content = await asyncio.wrap_future(begin(body))
        return {"created": int(time.time()), "data": [{"b64_json": base64.b64encode(content).decode()}]}

    @app.post("/v1/jobs", status_code=202)
    async def submit(body: JobRequest) -> dict[str, str]:
        jobs.append(begin(body))
        return {"id": str(len(jobs) - 1)}

    @app.get("/v1/jobs/{number}")
    async def look(number: int) -> dict[str, Any]:
        if not 0 <= number < len(jobs):
            raise HTTPException(404)
        done = jobs[number].done()
        failed = done and jobs[number].exception() is not None
        return {"finished_at": time.time() if done else None, "state": "failed" if failed else "completed"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    """Serve with the settings of the environment."""
    settings = Settings()
    torch.set_num_threads(settings.threads)
    batches = ClosedBatches(lambda spec: load_model(spec, settings), installed_models(settings))
    uvicorn.run(create_app(settings, batches), port=settings.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
