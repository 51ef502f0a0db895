"""Pictures: from text, from a picture, into a picture, and larger than a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from models.families import text_to_image, upscaling
from models.families.row import Row
from models.families.text_to_image import Decoder, TextToImageModel
from models.guidance import Guidance
from models.plan import Plan, make_plan
from service.jobs.job import ImageToImage, Inpainting, PictureRequest, Upscaling
from service.worker.batch import BatchKey, Stage
from service.worker.input import mask_tensor, picture_tensor
from service.worker.piece import Piece
from service.worker.prompts import Prompts

MAX_BATCH = {Stage.ENCODE: 4, Stage.DECODE: 8}
"""Pictures of one batch outside the denoiser, whose bound is part of a row's numerics. Small: nothing is gained by
larger ones, and a batch cannot be interrupted."""


@dataclass
class Picture(Piece):
    """One picture of a job.

    Raises:
        ValueError: the model makes no pictures.
    """

    request: PictureRequest
    model: TextToImageModel = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.loaded.model, TextToImageModel):
            raise ValueError(f"model {self.request.model!r} does not do {self.request.task}")
        self.model = self.loaded.model

    @property
    def key(self) -> BatchKey:
        """What the next piece of work can be batched with."""
        stage, request = self.stage, self.request
        network, tokens = "text" if stage is Stage.ENCODE else self._decoder_name, 0
        if self.row is not None and stage is Stage.DENOISE:
            network, tokens = "+".join(sorted(self.row.networks)), self.row.tokens
        return BatchKey(
            stage=stage,
            model=request.model,
            network=network,
            shape=self._latent_shape,
            tokens=tokens,
            numerics_id=self.numerics.id,
            adapters=self.adapters,
            max_lanes=MAX_BATCH.get(stage, self.numerics.max_lanes),
        )

    @property
    def requirements(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Identities of the networks of the next stage, and of the later ones."""
        encoded = self.inputs.image is not None and not isinstance(self.request, Upscaling)
        return self.loaded.requirements(self.stage, encoded, self.request.fast_decoder)

    @property
    def preview_part(self) -> int | None:
        """Number of the preview that the next line completes, from 0; None for none. Previews are evenly spread over
        the lines, and none comes after the last, which makes the picture itself."""
        if self.row is None or not self.request.partial_images:
            return None
        parts, lines = self.request.partial_images, len(self.row.plan.lines)
        due = [lines * (part + 1) // (parts + 1) for part in range(parts)]
        return due.index(self.row.line + 1) if self.row.line + 1 in due else None

    def begin(self, prompts: Prompts) -> Row:
        """A row at line 0."""
        request, plan = self.request, self._plan()
        conditions = prompts.conditions(self.model, request, self.numerics.id)
        picture = None if self.inputs.image is None else picture_tensor(self.inputs.image)
        mask = None if self.inputs.mask is None else mask_tensor(self.inputs.mask)
        if isinstance(request, Upscaling) and picture is not None:
            return upscaling.start_row(self.model, plan, conditions, self.seed, picture, request.noise_level)
        size = (request.width, request.height)
        return text_to_image.start_row(self.model, plan, conditions, self.seed, size, picture, mask)

    @classmethod
    def decode(cls, pieces: Sequence[Self]) -> None:
        """Latents to pixels; one by one where only that gives a row bytes of its own."""
        decoder = pieces[0]._decoder
        rows = [piece.row for piece in pieces if piece.row is not None]
        batches = [[row] for row in rows] if pieces[0].numerics.lone_decode else [rows]
        pictures = [picture for batch in batches for picture in text_to_image.decode(decoder, batch)]
        for piece, pixels in zip(pieces, pictures, strict=True):
            # An upscaler's row is padded at its right and lower edge.
            piece.pixels = pixels[: piece.request.height, : piece.request.width]

    def _plan(self) -> Plan:
        request = self.request
        strength = request.strength if isinstance(request, ImageToImage | Inpainting) else 1.0
        # Inpainting at full strength begins as noise: what is painted over must not show through.
        from_picture = isinstance(request, ImageToImage) or strength < 1.0
        return make_plan(
            self.model.schedule,
            request.scheduler,
            request.num_inference_steps,
            Guidance(request.guidance_scale),
            network=self.model.spec.system.denoiser,
            strength=strength,
            from_picture=from_picture,
            refiner=self.model.spec.hand_over,
        )

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        if self.row is not None:
            return tuple(self.row.state.shape[1:])
        scale = self.model.downscale
        return (self.model.latent_channels, self.request.height // scale, self.request.width // scale)

    @property
    def _decoder_name(self) -> str:
        return "vae_tiny" if self.request.fast_decoder and self.model.fast_decoder is not None else "vae"

    @property
    def _decoder(self) -> Decoder:
        fast = self.model.fast_decoder if self.request.fast_decoder else None
        return fast or self.model.decoder
