"""Latents to small pictures: exact where the decoder is linear, close where it is real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.conditioners.condition import Condition
from models.families.row import advance, start
from models.guidance import Guidance
from models.plan import Schedule, make_plan
from models.preview import clean_estimate, fit_latent_rgb, latent_preview, moment
from models.weights import load_vae

EMOJI_XL = Path(__file__).resolve().parents[2] / "models" / "zoo" / "emoji-xl"
CHANNELS = 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    return drawn(CHANNELS + 1, 3, seed=1) * 0.05


def linear(matrix: Tensor, latents: Tensor) -> Tensor:
    """A decoder that a matrix describes: every latent becomes 4 x 4 pixels around its colour."""
    colours = torch.einsum("bchw,cr->brhw", latents, matrix[:-1]) + matrix[-1][:, None, None]
    texture = torch.tensor([[0.2, -0.2], [-0.2, 0.2]]).repeat(2 * latents.shape[2], 2 * latents.shape[3])
    return F.interpolate(colours, scale_factor=4) + texture


def test_the_matrix_of_a_linear_decoder_is_found(matrix: Tensor) -> None:
    found = fit_latent_rgb(lambda z: linear(matrix, z), drawn(2, CHANNELS, 4, 6))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-6)


def test_a_channel_that_never_varies_does_no_harm(matrix: Tensor) -> None:
    latents = drawn(2, CHANNELS, 4, 6)
    latents[:, 2] = 0.5
    found = fit_latent_rgb(lambda z: linear(matrix, z), latents)
    expected = latent_preview(latents, matrix)
    assert (latent_preview(latents, found).int() - expected.int()).abs().max() <= 1


def test_a_preview_has_the_levels_of_a_picture(matrix: Tensor) -> None:
    latents = drawn(2, CHANNELS, 3, 4) * 30.0
    preview = latent_preview(latents, matrix)
    assert preview.shape == (2, 3, 4, 3) and preview.dtype == torch.uint8
    assert preview.min() == 0 and preview.max() == 255
    for i, j, k in ((0, 0, 0), (1, 2, 3)):
        colour = latents[i, :, j, k] @ matrix[:-1] + matrix[-1]
        expected = ((colour.clamp(-1.0, 1.0) + 1.0) * 127.5).round()
        assert (preview[i, j, k].float() - expected).abs().max() <= 1.0


def test_another_number_of_channels_is_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match=r"matrix has shape \[6, 3\], expected \[5, 3\]"):
        latent_preview(drawn(1, 4, 2, 2), matrix)


def test_too_few_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="latents holds 4 vectors, expected at least 6"):
        fit_latent_rgb(lambda z: z[:, :3], drawn(1, CHANNELS, 2, 2))


def test_previews_of_the_shipped_model_show_the_picture() -> None:
    """Fitted on some pieces of its sample sheet, judged on others."""
    sheet = torch.from_numpy(np.asarray(Image.open(EMOJI_XL / "samples.png").convert("RGB")).copy())
    generator = torch.Generator().manual_seed(0)
    corners = [
        [int(torch.randint(side - 64, (1,), generator=generator)) for side in sheet.shape[:2]] for _ in range(36)
    ]
    windows = torch.stack([sheet[y : y + 64, x : x + 64] for y, x in corners])
    vae = load_vae(EMOJI_XL)
    with torch.inference_mode():
        latents = vae.encode(windows.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
        matrix = fit_latent_rgb(vae.decode, latents[:24])
        pictures = vae.decode(latents[24:]).clamp(-1.0, 1.0)
    small = (F.avg_pool2d(pictures, vae.spec.downscale).permute(0, 2, 3, 1) + 1.0) * 127.5
    preview = latent_preview(latents[24:], matrix).float()
    mean_colour = (small - small.mean(dim=(0, 1, 2))).square().mean().sqrt()
    assert mean_colour > 20.0
    assert (preview - small).square().mean().sqrt() < 0.4 * mean_colour
    elsewhere = latent_preview(latents[24:].roll(1, dims=0), matrix).float()
    assert (elsewhere - small).square().mean().sqrt() > 0.8 * mean_colour  # a control: another picture's preview


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "solver", ["euler", "euler-ancestral", "ddim", "dpm++2m", "dpm++2m-sde", "heun", "plms", "unipc"]
)
def test_the_clean_estimate_is_that_of_the_network(solver: str, masked: bool) -> None:
    """A network that knows the clean latent: it tells the noise that leads there, whatever the row is."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
    plan = make_plan(Schedule.from_config({"_class_name": "EulerDiscreteScheduler", **betas}), solver, 6, Guidance(1.0))
    shape = (2, 3, 4)
    clean, condition = drawn(*shape, seed=3), Condition(torch.zeros(1, 1), torch.zeros(1))
    mask, picture = (drawn(1, 3, 4, seed=4) > 0).float(), drawn(*shape, seed=5)
    row = start(
        plan, {"positive": condition}, torch.Generator().manual_seed(1), shape, picture, mask if masked else None
    )
    expected = mask * clean + (1 - mask) * picture if masked else clean

    def network(x: Tensor, *_: Tensor) -> Tensor:
        line = plan.lines[row.line]
        return ((clean - line.c_skip * row.state[0]) / line.c_out)[None]

    while not row.finished:
        before = moment(row)
        advance({"unet": network}, [row])
        estimate = clean_estimate(before, row)
        if before.line.b[0]:
            torch.testing.assert_close(estimate, expected, rtol=2e-3, atol=2e-3)
        else:
            assert torch.equal(estimate, row.state[0])
