"""Previews of a picture in the making: latents to small pictures by one matrix instead of a decoder.

Latents of a picture autoencoder are close to a small picture in another colour space. The matrix is fitted to the
decoder by least squares. What is shown is not the noisy latent but the network's estimate of the clean one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.families.row import Row
from models.plan import Line


@dataclass(frozen=True)
class Moment:
    """A row as it was before a line."""

    line: Line
    state: Tensor
    noise: torch.Tensor
    """State of its noise generator."""


def moment(row: Row) -> Moment:
    """The row as it is now, before its next line; costs no copy of the latent, for lines replace it."""
    return Moment(row.plan.lines[row.line], row.state, row.generator.get_state())


def clean_estimate(before: Moment, row: Row) -> Tensor:
    """D, the network's estimate of the clean latent, of the line that was just run.

    It is recovered from x' = A y + b D + s noise, in which all else is known, so that no step has to carry it along.

    Args:
        before: the row before the line.
        row: the same row after it.

    Returns:
        [C, h, w] or [T, C, h, w] in the network's scale; x' itself for a line that leaves D out of it.
    """
    line, x = before.line, row.state[0]
    if not line.b[0]:
        return x
    rest = torch.einsum("k,k...->...", torch.tensor(line.a[0], dtype=x.dtype).to(x.device), before.state)
    if line.s:
        generator = torch.Generator()
        generator.set_state(before.noise)
        rest = rest + line.s * torch.randn((1, *x.shape), generator=generator)[0].to(x.device)
    estimate = (x - rest) / line.b[0]
    return estimate if row.keep is None else row.keep.blend(estimate, 1.0, 0.0)


def fit_latent_rgb(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """The matrix that best predicts the decoder's pictures, averaged down to the latents' grid.

    Args:
        decode: [B, C, h, w] -> pictures [B, 3, h*f, w*f] in about [-1, 1].
        latents: [B, C, h, w] of typical pictures, in the network's scale; at least C + 1 vectors.

    Returns:
        fp32 [C + 1, 3]: one row a latent channel, the offset last.

    Raises:
        ValueError: fewer latents than unknowns.
    """
    channels = latents.shape[1]
    unknowns = channels + 1
    if (count := latents[:, 0].numel()) < unknowns:
        raise ValueError(f"latents holds {count} vectors, expected at least {unknowns}")
    pictures = decode(latents).double().clamp(-1.0, 1.0)
    colours = F.adaptive_avg_pool2d(pictures, (latents.shape[2], latents.shape[3])).movedim(1, -1).reshape(-1, 3)
    vectors = latents.double().movedim(1, -1).reshape(-1, channels)
    design = torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)
    # The pseudo-inverse also answers where a channel never varies.
    return (torch.linalg.pinv(design) @ colours).float()


def latent_preview(latents: Tensor, matrix: Tensor) -> Tensor:
    """One pixel a latent.

    Args:
        latents: [B, C, h, w] in the network's scale.
        matrix: [C + 1, 3] of :func:`fit_latent_rgb`.

    Returns:
        uint8 [B, h, w, 3].

    Raises:
        ValueError: the matrix is for another number of channels.
    """
    channels = latents.shape[1]
    if matrix.shape != (channels + 1, 3):
        raise ValueError(f"matrix has shape {list(matrix.shape)}, expected {[channels + 1, 3]}")
    matrix = matrix.to(latents.device)
    colours = latents.movedim(1, -1).to(matrix.dtype) @ matrix[:-1] + matrix[-1]
    return ((colours.clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0).round().to(torch.uint8)
