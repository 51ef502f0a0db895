"""One request in this process, without server or store."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from models.adapters.whole import AdapterSet
from models.spec.model import ModelSpec
from service.jobs.job import ImageToVideo, PictureRequest
from service.settings import Settings, installed_adapters, installed_models
from service.worker.adapted import AdaptedModels
from service.worker.batch import Stage
from service.worker.clip import Clip
from service.worker.input import NO_INPUTS, Inputs
from service.worker.loaded import LoadedModel
from service.worker.media import encode_picture
from service.worker.opening import load_model
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.placement import placement, set_up
from service.worker.runner import Runner
from service.worker.video import encode_clip


def generate(
    settings: Settings,
    request: PictureRequest | ImageToVideo,
    on_step: Callable[[int, int], None],
    inputs: Inputs = NO_INPUTS,
) -> bytes:
    """The first picture or clip of ``request`` as bytes; the same ones that a server with these settings would send.

    Args:
        on_step: called with (steps done, steps in all) after every step.
        inputs: what the request begins from, in its size; the artifacts that it names are not looked for.

    Raises:
        KeyError: the model is not installed.
        ValueError: the model does not do this task, an adapter cannot be used with it, or a setting names no device or
            kernel.
        RuntimeError: there is no encoder for clips.
    """
    place = placement(settings)
    set_up(place, settings)
    spec, loras = installed_models(settings)[request.model], request.loras

    def load(spec: ModelSpec, adapters: AdapterSet | None = None) -> LoadedModel:
        return load_model(spec, settings, place, adapters=adapters)

    installed = partial(installed_adapters, settings)
    loaded = AdaptedModels(load, installed).open(spec, loras) if loras else load(spec)
    common = (request.seed, time.time(), loaded, loaded.numerics(request.deterministic), inputs)
    piece: Piece = Clip(request, *common) if isinstance(request, ImageToVideo) else Picture(request, *common)
    runner = Runner()
    while piece.pixels is None:
        stage = piece.stage
        runner.run(stage, [piece])
        if stage is Stage.DENOISE:
            on_step(piece.steps_done, piece.steps)
    if isinstance(request, ImageToVideo):
        return encode_clip(piece.pixels, request, request.seed).content
    return encode_picture(piece.pixels, request, request.seed)
