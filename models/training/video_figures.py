"""What is measured of the video model's clips, each figure beside what it is for real clips or for a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.training.flow import mean_speed
from models.training.motion import BUCKETS_PER_PIXEL

MARGIN = 4
"""Pixels around whatever moves that do not count as still."""
MOVES = 0.05
"""A pixel that changes by more from the first frame to any other moves."""
FITTING_STEPS = 300


@dataclass(frozen=True)
class OrderClassifier:
    """Tells a clip from the same frames in another order, by how the distance of two frames grows with the time between
    them. Logistic regression on :func:`lag_profile`."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, clips: Tensor, seed: int) -> OrderClassifier:
        """Learn from real clips [N, T, 3, H, W] and their own frames shuffled."""
        features, labels = _ordered_and_shuffled(clips, seed)
        weight = torch.zeros(features.shape[1], requires_grad=True)
        bias = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], 0.1)
        for _ in range(FITTING_STEPS):
            loss = F.binary_cross_entropy_with_logits(features @ weight + bias, labels) + 1e-3 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(weight.detach(), bias.detach())

    def accuracy(self, clips: Tensor, seed: int) -> float:
        """Share that is told rightly, of these clips [N, T, 3, H, W] and of their own frames shuffled."""
        features, labels = _ordered_and_shuffled(clips, seed)
        return float(((features @ self.weight + self.bias > 0) == labels.bool()).float().mean())


def lag_profile(clip: Tensor) -> Tensor:
    """Mean distance of frames 1, 2 ... T - 1 steps apart, as parts of the mean over all pairs: [T - 1].

    It is 1 everywhere for frames in random order, and for frames that do not differ.
    """
    frames = clip.flatten(1)
    distances = torch.cdist(frames[None], frames[None])[0]
    mean = distances.sum() / (len(clip) * (len(clip) - 1))
    lags = torch.stack([distances.diagonal(lag).mean() for lag in range(1, len(clip))])
    return lags / mean if mean > 1e-6 else torch.ones_like(lags)


def _ordered_and_shuffled(clips: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shuffled = [clip[_out_of_order(len(clip), generator)] for clip in clips]
    features = torch.stack([lag_profile(clip) for clip in [*clips, *shuffled]]) - 1.0
    return features, torch.cat([torch.ones(len(clips)), torch.zeros(len(clips))])


def _out_of_order(frames: int, generator: torch.Generator) -> Tensor:
    """A random order that is neither forwards nor backwards, for backwards is an order too."""
    forwards = torch.arange(frames)
    while True:
        order = torch.randperm(frames, generator=generator)
        if not (torch.equal(order, forwards) or torch.equal(order, forwards.flip(0))):
            return order


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of two equally long series; equal values share the mean of their ranks."""
    ranks = np.stack([_ranks(np.asarray(values)) for values in (a, b)])
    return float(np.corrcoef(ranks[0], ranks[1])[0][1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: NDArray[np.float64] = (last - (count - 1) / 2.0)[place]
    return ranks


def frame_change(clip: Tensor) -> float:
    """Mean change of a pixel from frame to frame, of a clip [T, 3, H, W] in [0, 1]."""
    return float(clip.diff(dim=0).abs().mean())


def still_region(clip: Tensor) -> Tensor:
    """Pixels that nothing moves over, bool [H, W]."""
    change = (clip - clip[:1]).abs().amax(dim=(0, 1))
    moving = (change > MOVES).float()
    return F.max_pool2d(moving[None, None], 2 * MARGIN + 1, stride=1, padding=MARGIN)[0, 0] == 0


def flicker(clip: Tensor, region: Tensor) -> float:
    """Mean change of a pixel of ``region`` from frame to frame; 0 for an empty region."""
    changes = clip.diff(dim=0).abs().mean(dim=(0, 1))[region]
    return float(changes.mean()) if len(changes) else 0.0


def motion_figures(asked: Sequence[int], clips: Sequence[Tensor]) -> dict[str, Any]:
    """Asked motion buckets against measured speeds; the control gives every clip another's bucket."""
    measured = [mean_speed(clip) for clip in clips]
    turned = [*asked[1:], *asked[:1]]
    return {
        "clips": len(clips),
        "spearman": spearman(asked, measured),
        "spearman_of_another_clips_bucket": spearman(turned, measured),
        "asked_pixels_a_frame": [round(bucket / BUCKETS_PER_PIXEL, 3) for bucket in asked],
        "measured_pixels_a_frame": [round(speed, 3) for speed in measured],
    }
