"""Previews: learnt from what was decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.worker import previews as module
from service.worker.previews import SAMPLES, Previews

MATRIX = torch.tensor([[0.3, 0.0, 0.1], [0.0, 0.3, 0.1], [0.1, 0.1, 0.3], [0.1, -0.1, 0.0]])


def a_latent(seed: int, size: tuple[int, int] = (6, 8)) -> Tensor:
    return torch.randn(4, *size, generator=torch.Generator().manual_seed(seed))


def decoded(latent: Tensor) -> NDArray[np.uint8]:
    """A decoder that a matrix describes: every latent becomes 4 x 4 pixels."""
    colours = torch.einsum("chw,cr->hwr", latent, MATRIX).clamp(-1, 1) * 127.5 + 127.5
    return colours.repeat_interleave(4, 0).repeat_interleave(4, 1).round().to(torch.uint8).numpy()


def error(previews: Previews, latent: Tensor) -> float:
    small = previews.pixels("id", latent)
    assert small.shape == (*latent.shape[1:], 3) and small.dtype == np.uint8
    return float(np.abs(small.astype(int) - decoded(latent)[::4, ::4]).mean())


def test_one_picture_is_enough_and_more_are_better() -> None:
    previews = Previews()
    assert not previews.knows("id")
    previews.learn("id", a_latent(0), decoded(a_latent(0)))
    assert previews.knows("id") and not previews.knows("another")
    first = error(previews, a_latent(99))
    assert first < 12 < float(np.abs(decoded(a_latent(99)).astype(int) - decoded(a_latent(98))).mean())
    for seed in range(1, SAMPLES):
        previews.learn("id", a_latent(seed, (4, 4)), decoded(a_latent(seed, (4, 4))))
    assert error(previews, a_latent(99)) < first + 1
    for seed in range(SAMPLES):  # by now it knows enough, and what comes later changes nothing
        previews.learn("id", a_latent(seed), np.zeros((24, 32, 3), np.uint8))
    assert error(previews, a_latent(99)) < first + 1


def test_the_oldest_model_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODELS", 1)
    previews = Previews()
    for name in ("old", "new"):
        previews.learn(name, a_latent(0), decoded(a_latent(0)))
    assert previews.knows("new") and not previews.knows("old")


def test_what_was_never_decoded_has_no_preview() -> None:
    with pytest.raises(KeyError):
        Previews().pixels("id", a_latent(0))
