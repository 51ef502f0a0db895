"""The benchmark of whole forwards, on meta tensors."""

from __future__ import annotations

import pytest
import torch

from benchmarks.denoise_step import CASES, SDXL_VAE, Case, shape_of
from models.spec.vae import VAESpec
from models.vae import VAE


@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
def test_configs_and_shapes_fit(case: Case) -> None:
    shape_of(case)


def test_the_decoder_is_of_eight() -> None:
    with torch.device("meta"):
        vae = VAE(VAESpec.from_config(SDXL_VAE))
        assert vae.decode(torch.empty(1, 4, 16, 12)).shape == (1, 3, 128, 96)
