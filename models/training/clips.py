"""What the video model learns from: clips of moving drawings, encoded once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from models.training.animations import FPS, Animations
from models.training.artwork import Drawings, composite
from models.training.flow import mean_speed
from models.training.motion import bucket, moved, random_motion
from models.vae import VAE

FRAMES = 8
PART = 256
"""Clips that are made and kept together."""
ANIMATED_SHARE = 0.4
"""The rest is set in motion here, with a flow that is known."""
STRIDES = (1, 2, 3)
"""Steps through an animation's frames."""
COLOURED_SHARE = 0.25
"""Clips on a random colour instead of white."""
PLACED_SHARE = 0.5
"""Drawings that are made smaller and put somewhere, so that there is room to move."""
LOG_NOISE = (-3.0, 0.5)
"""Mean and spread of the logarithm of the noise on the picture (Blattmann et al. 2023, appendix D)."""


@dataclass(frozen=True)
class Clip:
    """One clip before it is encoded."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3]."""
    fps: int
    speed: float
    """Pixels a frame."""


@dataclass(frozen=True)
class Clips:
    """N encoded clips."""

    latents: Tensor
    """fp16 [N, T, C, h, w], in the network's scale."""
    conditions: Tensor
    """fp16 [N, C, h, w]: the first frame with noise, encoded and *unscaled*, as the network is conditioned."""
    pictures: Tensor
    """uint8 [N, 3, H, W]: the clean first frame."""
    numbers: Tensor
    """fp32 [N, 3]: frames a second, motion bucket, noise."""

    def __len__(self) -> int:
        return len(self.latents)


def encoded_clips(work: Path, parts: int, drawings: Drawings, animations: Animations, vae: VAE) -> Clips:
    """``parts`` times :data:`PART` clips; what the folder ``work`` has already is not made again."""
    work.mkdir(parents=True, exist_ok=True)
    made = []
    for part in track(range(parts), "clips"):
        path = work / f"clips-{part:04d}.pt"
        if not path.exists():
            with torch.device("cpu"):
                drawn = list(random_clips(part, drawings, animations, PART))
            clips = _encoded(drawn, vae, part)
            torch.save(astuple(clips), path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
        made.append(torch.load(path, weights_only=True, map_location="cpu"))
    return Clips(*(torch.cat(column).to(torch.get_default_device()) for column in zip(*made, strict=True)))


def random_clips(seed: int, drawings: Drawings, animations: Animations, count: int) -> Iterator[Clip]:
    """Animated and moved drawings, mixed by :data:`ANIMATED_SHARE`."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        if random.random() < ANIMATED_SHARE:
            yield animated(random, animations)
        else:
            yield set_in_motion(random, drawings.pixels[random.integers(len(drawings))])


def random_frames(
    random: np.random.Generator, clips: int, frames: int, drawings: Drawings, animations: Animations
) -> Tensor:
    """The first frames of random clips, as an autoencoder sees them: fp32 [clips, frames, 3, H, W] in [-1, 1]."""
    chosen = []
    for _ in range(clips):
        if random.random() < ANIMATED_SHARE:
            chosen.append(_stretch(random, animations)[0])
        else:
            with torch.device("cpu"):
                chosen.append(_in_motion(random, drawings.pixels[random.integers(len(drawings))])[0])
    pixels = np.stack([_on_background(random, clip[:frames]) for clip in chosen])
    return torch.asarray(pixels).permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0


def animated(random: np.random.Generator, animations: Animations) -> Clip:
    """:data:`FRAMES` frames of a loop, from anywhere in it; they wrap around."""
    stretch, fps = _stretch(random, animations)
    frames = _on_background(random, stretch)
    return Clip(frames, fps, mean_speed(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255.0))


def set_in_motion(random: np.random.Generator, drawing: NDArray[np.uint8]) -> Clip:
    """A drawing uint8 [H, W, 4] that moves in one of the ways of :mod:`models.training.motion`."""
    frames, speed = _in_motion(random, drawing)
    return Clip(_on_background(random, frames), int(random.integers(4, 13)), speed)


def _stretch(random: np.random.Generator, animations: Animations) -> tuple[NDArray[np.uint8], int]:
    """Frames [T, H, W, 4] and how many of them are a second."""
    loop = animations.loop(int(random.integers(len(animations))))
    stride = int(random.choice(STRIDES))
    picked = (int(random.integers(len(loop))) + stride * np.arange(FRAMES)) % len(loop)
    return loop[picked], FPS // stride


def _in_motion(random: np.random.Generator, drawing: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Frames [T, H, W, 4] and their speed."""
    if random.random() < PLACED_SHARE:
        drawing = _placed(random, drawing)
    motion, speed = random_motion(random, drawing, FRAMES)
    return moved(drawing, motion.poses(FRAMES)), speed


def _placed(random: np.random.Generator, drawing: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = random.uniform(0.55, 0.95)
    x, y = random.uniform(size - 1.0, 1.0 - size, 2)
    return moved(drawing, torch.tensor([[[size, 0.0, x], [0.0, size, y]]], dtype=torch.float32))[0]


def _on_background(random: np.random.Generator, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour = random.integers(256, size=3) if random.random() < COLOURED_SHARE else np.array([255, 255, 255])
    return composite(frames, colour.astype(np.uint8))


@torch.inference_mode()
def _encoded(clips: list[Clip], vae: VAE, seed: int) -> Clips:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    frames = torch.asarray(np.stack([clip.frames for clip in clips])).permute(0, 1, 4, 2, 3)
    noise = torch.exp(LOG_NOISE[0] + LOG_NOISE[1] * torch.randn(len(clips), generator=generator))
    first = frames[:, 0].float() / 127.5 - 1.0
    noisy = first + noise[:, None, None, None] * torch.randn(first.shape, generator=generator)
    numbers = [[clip.fps, bucket(clip.speed), float(level)] for clip, level in zip(clips, noise, strict=True)]
    return Clips(
        torch.stack([vae.encode(clip.float() / 127.5 - 1.0) for clip in frames]).half(),
        torch.cat([vae.encode_unscaled(part) for part in noisy.split(FRAMES)]).half(),
        frames[:, 0].contiguous(),
        torch.tensor(numbers),
    )
