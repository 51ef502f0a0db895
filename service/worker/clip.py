"""Clips: one row after the other, each decoded in chunks of frames, so that pictures can pass between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.families import image_to_video
from models.families.image_to_video import ImageToVideoModel, Motion
from models.families.row import Row
from models.plan import make_plan
from service.jobs.job import ImageToVideo
from service.worker.batch import BatchKey, Stage
from service.worker.input import picture_tensor
from service.worker.piece import Piece, Snapshot
from service.worker.prompts import Prompts

SEGMENT_SEEDS = 0x9E3779B97F4A7C15
"""The seeds of later segments lie so far apart that no clip's second segment has the noise of the next clip's first."""


@dataclass
class Clip(Piece):
    """One clip of a job: segments one after the other, each begun from the last frame of the one before.

    Raises:
        ValueError: the model makes no clips, or not of so many frames.
    """

    request: ImageToVideo
    model: ImageToVideoModel = field(init=False)
    _chunks: list[NDArray[np.uint8]] = field(init=False, default_factory=list)
    """[N, H, W, 3] each: all frames that are decoded, of every segment."""

    def __post_init__(self) -> None:
        if not isinstance(self.loaded.model, ImageToVideoModel):
            raise ValueError(f"model {self.request.model!r} does not do {self.request.task}")
        self.model = self.loaded.model
        if self.request.frames != self.model.spec.frames:
            raise ValueError(f"frames is {self.request.frames}, this model makes {self.model.spec.frames}")
        if self.saved is not None and self.saved.frames is not None:
            self._chunks.append(self.saved.frames)

    @property
    def key(self) -> BatchKey:
        """What the next piece of work can be batched with."""
        stage, request, scale = self.stage, self.request, self.model.downscale
        network, tokens, frames = "vae+vision" if stage is Stage.ENCODE else "vae", 0, request.frames
        if stage is Stage.DECODE:
            frames = self.chunk_frames
        elif self.row is not None:
            network, tokens = "+".join(sorted(self.row.networks)), self.row.tokens
        return BatchKey(
            stage=stage,
            model=request.model,
            network=network,
            shape=(frames, self.model.latent_channels, request.height // scale, request.width // scale),
            tokens=tokens,
            numerics_id=self.numerics.id,
            adapters=self.adapters,
            max_lanes=self.numerics.max_lanes if stage is Stage.DENOISE else 1,
        )

    @property
    def evaluations(self) -> int:
        """Forward passes until the stage is over."""
        if self.stage is not Stage.DECODE:
            return super().evaluations
        left = (self._segment + 1) * self.request.frames - self._decoded
        return -(-left // self.chunk_frames)

    @property
    def steps(self) -> int:
        """Of all segments."""
        return self.request.num_inference_steps * self.request.segments

    @property
    def steps_done(self) -> int:
        """Of these."""
        return self.request.num_inference_steps * self._segment + super().steps_done

    @property
    def lines_done(self) -> int:
        """Evaluations that were made for it; all segments have equally many."""
        return self._segment * (0 if self.row is None else len(self.row.plan.lines)) + super().lines_done

    def begin(self, prompts: Prompts) -> Row:  # noqa: ARG002 (clips have no prompts)
        """The row of the segment that comes next, at line 0."""
        request = self.request
        plan = make_plan(
            self.model.schedule,
            request.scheduler,
            request.num_inference_steps,
            image_to_video.guidance(self.model, request.min_guidance_scale, request.guidance_scale),
            network=self.model.spec.system.denoiser,
        )
        return image_to_video.start_row(
            self.model,
            plan,
            picture_tensor(self._first_frame),
            Motion(request.fps, request.motion_bucket_id, request.noise_aug_strength),
            (self.seed + self._segment * SEGMENT_SEEDS) % 2**63,
        )

    def begin_anew(self) -> None:
        """Forget what a checkpoint brought."""
        super().begin_anew()
        self._chunks.clear()

    @classmethod
    def decode(cls, pieces: Sequence[Self]) -> None:
        """One chunk of frames of each clip; behind the last of a segment comes the next, or the clip is done."""
        for piece in pieces:
            piece._decode_chunk()

    def snapshot(self) -> Snapshot:
        """Where it stands now, with the frames that are decoded."""
        row = super().snapshot()
        return Snapshot(row.conditions, row.row, np.concatenate(self._chunks) if self._chunks else None)

    def _decode_chunk(self) -> None:
        request, row = self.request, self.row
        if row is None:
            raise ValueError("a clip is decoded before it is encoded")
        segment, first = self._segment, self._decoded - self._segment * request.frames
        self._chunks.append(image_to_video.decode_frames(self.model, row, first, self.chunk_frames))
        if self._decoded < (segment + 1) * request.frames:
            return
        if segment + 1 < request.segments:
            self.row = None
            return
        repeated = {request.frames * segment for segment in range(1, request.segments)}
        kept = [i for i in range(self._decoded) if i not in repeated]
        self.pixels = np.concatenate(self._chunks)[kept]

    @property
    def chunk_frames(self) -> int:
        """Frames decoded together; the last chunk of a segment may be shorter."""
        return min(self.request.decode_chunk_size or self.request.frames, self.request.frames)

    @property
    def _decoded(self) -> int:
        """Frames of all segments that are decoded."""
        return sum(map(len, self._chunks))

    @property
    def _segment(self) -> int:
        """The segment in work; behind the last frame of one it is the next, unless the clip is done."""
        return min(self._decoded // self.request.frames, self.request.segments - 1)

    @property
    def _first_frame(self) -> NDArray[np.uint8]:
        if self._segment:
            frame: NDArray[np.uint8] = np.concatenate(self._chunks)[self._segment * self.request.frames - 1]
            return frame
        if self.inputs.image is None:
            raise ValueError("a clip begins from a picture, and none is given")
        return self.inputs.image
