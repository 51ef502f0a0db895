"""Previews of models without a small decoder: one matrix a model stands in for the decoder, learnt from what that makes
anyway."""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.preview import fit_latent_rgb, latent_preview

SAMPLES = 8
"""Pictures that a matrix is fitted on. One is enough for a matrix, more make it a better one."""
MODELS = 32
"""Models whose matrices are kept."""


class Previews:
    """Matrices by the numerics ids under which the models decode. One thread uses it."""

    def __init__(self) -> None:
        self._samples: OrderedDict[str, deque[tuple[Tensor, Tensor]]] = OrderedDict()
        self._matrices: dict[str, Tensor] = {}

    def knows(self, numerics_id: str) -> bool:
        """Whether there is a matrix."""
        return numerics_id in self._matrices

    def learn(self, numerics_id: str, latent: Tensor, pixels: NDArray[np.uint8]) -> None:
        """Take in a decoded picture; after the first few it changes nothing any more.

        Args:
            latent: [C, h, w] in the network's scale.
            pixels: [H, W, 3] that the decoder made of it.
        """
        samples = self._samples.setdefault(numerics_id, deque())
        if len(samples) >= SAMPLES:
            return
        colours = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0
        samples.append((latent.float(), F.adaptive_avg_pool2d(colours, (latent.shape[1], latent.shape[2]))))
        vectors = torch.cat([z.flatten(1) for z, _ in samples], dim=1)[None, :, None]
        targets = torch.cat([small.flatten(1) for _, small in samples], dim=1)[None, :, None]
        if vectors.shape[-1] > len(latent):
            self._matrices[numerics_id] = fit_latent_rgb(lambda _: targets, vectors)
        if len(self._samples) > MODELS:
            oldest, _ = self._samples.popitem(last=False)
            self._matrices.pop(oldest, None)

    def pixels(self, numerics_id: str, latent: Tensor) -> NDArray[np.uint8]:
        """uint8 [h, w, 3], one pixel a latent.

        Raises:
            KeyError: nothing was decoded under these numerics yet.
        """
        small: NDArray[np.uint8] = latent_preview(latent.float()[None], self._matrices[numerics_id])[0].numpy()
        return small
