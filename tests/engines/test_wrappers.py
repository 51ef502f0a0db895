"""Modules that give networks the call of a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.signature import Signature, port
from engines.wrappers import AsGraph, VAEEncoder

CALL = Signature(
    inputs=(port("x", ("batch", 2)), port("vector", ("batch", 0)), port("y", ("batch", 2))),
    outputs=(port("output", ("batch", 2)),),
)


class Difference(nn.Module):
    def forward(self, x: Tensor, vector: Tensor, y: Tensor) -> Tensor:
        assert vector.shape == (len(x), 0)
        return (x - y).half()


class Both(nn.Module):
    def forward(self, x: Tensor, vector: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.half(), y.half()


def test_inputs_without_elements_are_filled_in_and_outputs_are_fp32() -> None:
    x, y = torch.ones(3, 2), torch.full((3, 2), 4.0)
    difference = AsGraph(Difference(), CALL)(x, y)
    assert isinstance(difference, Tensor) and difference.dtype == torch.float32
    assert torch.equal(difference, torch.full((3, 2), -3.0))
    first, second = AsGraph(Both(), CALL)(x, y)
    assert first.dtype == second.dtype == torch.float32 and torch.equal(second, y)


def test_the_encoder_returns_both_moments() -> None:
    class Halves(nn.Module):
        def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
            return pictures * 0.5, pictures * 2.0

    mean, log_variance = VAEEncoder(Halves())(torch.ones(1, 3, 2, 2)).chunk(2, dim=1)
    assert mean.eq(0.5).all() and log_variance.eq(2.0).all() and mean.shape == (1, 3, 2, 2)
