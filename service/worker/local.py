"""One request in this process, without server or store."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from service.jobs.job import TextToImage
from service.settings import Settings, installed_models
from service.worker.batch import Stage
from service.worker.media import encode_picture
from service.worker.residency import load_model
from service.worker.runner import Picture, Runner


def generate(settings: Settings, request: TextToImage, on_step: Callable[[int, int], None]) -> bytes:
    """The first picture of ``request`` as bytes; the same ones that a server with these settings would send.

    Args:
        on_step: called with (steps done, steps in all) after every step.

    Raises:
        KeyError: the model is not installed.
    """
    torch.set_num_threads(settings.threads)
    loaded = load_model(installed_models(settings)[request.model], settings)
    numerics = loaded.numerics(request.deterministic)
    picture = Picture(request, request.seed, time.time(), loaded, numerics)
    runner = Runner()
    runner.encode([picture])
    while picture.stage is Stage.DENOISE:
        runner.denoise([picture])
        if picture.row is not None:
            on_step(picture.row.line, len(picture.row.plan.lines))
    return encode_picture(runner.decode([picture])[0], request, request.seed)
