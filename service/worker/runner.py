"""Runs one batch of one stage on loaded models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.conditioners.condition import Condition
from models.families import text_to_image
from models.families.row import Row, advance
from models.guidance import Guidance
from models.plan import make_plan
from service.jobs.job import TextToImage
from service.worker.batch import BatchKey, Item, Stage
from service.worker.numerics import Numerics
from service.worker.residency import LoadedModel

CACHED_PROMPTS = 256
MAX_BATCH = {Stage.ENCODE: 4, Stage.DENOISE: 0, Stage.DECODE: 8}
"""Pictures of one batch outside the denoiser, whose bound is part of a row's numerics. Small: nothing is gained by
larger ones, and a batch cannot be interrupted."""


@dataclass
class Picture:
    """One picture of a job on its way through the stages."""

    request: TextToImage
    seed: int
    arrived_at: float
    """When its job was accepted, Unix seconds."""
    loaded: LoadedModel
    numerics: Numerics
    row: Row | None = None
    """None until the prompt is encoded."""

    @property
    def stage(self) -> Stage:
        """The stage that comes next."""
        if self.row is None:
            return Stage.ENCODE
        return Stage.DECODE if self.row.finished else Stage.DENOISE

    @property
    def key(self) -> BatchKey:
        """What the next piece of work can be batched with."""
        request, model = self.request, self.loaded.model
        latent = (model.latent_channels, request.height // model.downscale, request.width // model.downscale)
        network, most = {Stage.ENCODE: "text", Stage.DECODE: "vae"}.get(self.stage, ""), MAX_BATCH[self.stage]
        tokens = 0
        if self.row is not None and self.stage is Stage.DENOISE:
            network, most = "+".join(sorted(self.row.networks)), self.numerics.max_lanes
            tokens = self.row.tokens
        return BatchKey(self.stage, request.model, network, latent, tokens, self.numerics.id, most)

    def item(self, row: int) -> Item:
        """The next piece of work, for the scheduler."""
        lanes, evaluations = 1, 1
        if self.row is not None and self.stage is Stage.DENOISE:
            lanes = len(self.row.plan.lines[self.row.line].lanes)
            evaluations = len(self.row.plan.lines) - self.row.line
        return Item(row, self.key, lanes, evaluations, self.arrived_at)


class Runner:
    """Executes batches. A batch that raises leaves every picture as it was."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[tuple[str, ...], dict[str, Condition]] = OrderedDict()

    def encode(self, pictures: Sequence[Picture]) -> None:
        """Prompt to conditions and line 0. One prompt at a time: its bytes must not depend on its neighbours."""
        for picture in pictures:
            request, model = picture.request, picture.loaded.model
            plan = make_plan(
                model.schedule,
                request.scheduler,
                request.num_inference_steps,
                Guidance(request.guidance_scale),
                network=model.spec.system.denoiser,
            )
            size = (request.width, request.height)
            picture.row = text_to_image.start_row(model, plan, self._conditions(picture), picture.seed, size)

    def denoise(self, pictures: Sequence[Picture]) -> None:
        """One step of every picture in one evaluation."""
        rows = [picture.row for picture in pictures if picture.row is not None]
        first = pictures[0]
        advance(first.loaded.model.denoisers, rows, first.numerics.padded_lanes)

    def decode(self, pictures: Sequence[Picture]) -> list[NDArray[np.uint8]]:
        """Finished latents to uint8 [H, W, 3] each."""
        rows = [picture.row for picture in pictures if picture.row is not None]
        decoder = pictures[0].loaded.model.decoder
        if pictures[0].numerics.lone_decode:
            return [text_to_image.decode(decoder, [row])[0] for row in rows]
        return list(text_to_image.decode(decoder, rows))

    def _conditions(self, picture: Picture) -> dict[str, Condition]:
        request = picture.request
        guided = request.guidance_scale > 1.0
        sizes = (str(request.width), str(request.height))
        key = (picture.numerics.id, request.prompt, request.negative_prompt if guided else "", str(guided), *sizes)
        if key in self._prompts:
            self._prompts.move_to_end(key)
            return self._prompts[key]
        conditions = text_to_image.prepare(
            picture.loaded.model,
            request.prompt,
            request.negative_prompt,
            guided,
            request.width,
            request.height,
        )
        self._prompts[key] = conditions
        if len(self._prompts) > CACHED_PROMPTS:
            self._prompts.popitem(last=False)
        return conditions
