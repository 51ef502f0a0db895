"""The autoencoder's training: what it sees, what it minimises, and that it gets better."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.spec.vae import VAESpec
from models.training import autoencoder
from models.training.artwork import Drawings
from models.training.autoencoder import (
    augment,
    composite,
    kl,
    latent_std,
    on_white,
    psnr,
    reconstruction_loss,
    split,
    train_autoencoder,
)
from models.training.loop import Recipe

SIZE = 16
TINY = VAESpec(latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=1, scaling_factor=1.0)
RECIPE = Recipe(steps=40, peak_lr=5e-3, final_lr=1e-3, warmup=5, ema=0.9)


class Cut(Exception):
    """Stands in for a kill."""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "HELD_OUT", 4)


def squares(count: int = 12) -> Drawings:
    """Squares, no two of the same colour, on nothing."""
    pixels = np.zeros((count, SIZE, SIZE, 4), np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (count, 3))
    pixels[:, 4:12, 4:12] = np.concatenate([colours, np.full((count, 1), 255)], axis=1)[:, None, None]
    zeros = np.zeros(count, np.int64)
    return Drawings(pixels, zeros, zeros, ("square",), ("square",), ("",), ((),), ("flat",))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colours(pixels: Tensor) -> set[tuple[int, ...]]:
    """Of the squares in [N, 4, S, S]."""
    return {tuple(colour) for colour in pixels[:, :, 8, 8].tolist()}


def test_the_parts_of_the_split_are_disjoint_and_complete() -> None:
    drawings = squares()
    data = split(drawings)
    assert (data.training.shape, data.held_out.shape) == ((8, 4, SIZE, SIZE), (4, 4, SIZE, SIZE))
    assert data.training.dtype == torch.uint8
    assert len(colours(data.training)) == 8 and len(colours(data.held_out)) == 4
    assert not colours(data.training) & colours(data.held_out)
    everything = torch.from_numpy(drawings.pixels).permute(0, 3, 1, 2)
    assert colours(data.training) | colours(data.held_out) == colours(everything)


def test_the_split_is_the_same_every_time_but_for_its_seed() -> None:
    assert torch.equal(split(squares()).held_out, split(squares()).held_out)
    assert not torch.equal(split(squares()).held_out, split(squares(), seed=1).held_out)


def test_composite_lays_premultiplied_colour_over_the_background() -> None:
    half_red, nothing, opaque = [128, 0, 0, 128], [0, 0, 0, 0], [0, 51, 255, 255]
    pixels = torch.tensor([half_red, nothing, opaque], dtype=torch.uint8)[:, :, None, None]
    white = on_white(pixels)[:, :, 0, 0]
    torch.testing.assert_close(white, torch.tensor([[1, -1 / 255, -1 / 255], [1, 1, 1], [-1, -0.6, 1]]))
    blue = composite(pixels, torch.tensor([[0.0, 0.0, 1.0]] * 3))[:, :, 0, 0]
    torch.testing.assert_close(blue, torch.tensor([[1 / 255, -1, -1 / 255], [-1, -1, 1], [-1, -0.6, 1]]))


def test_on_white_agrees_with_the_drawings_own_compositing() -> None:
    drawings = squares()
    ours = on_white(torch.from_numpy(drawings.pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose((ours.numpy() + 1) * 127.5, drawings.on_background(), atol=0.51)


def test_augment_keeps_form_and_range() -> None:
    pixels = split(squares()).training
    pictures = augment(pixels, seeded())
    assert pictures.shape == (8, 3, SIZE, SIZE) and pictures.dtype == torch.float32
    assert -1.0 <= float(pictures.min()) < float(pictures.max()) <= 1.0 + 1e-6


def test_augment_follows_its_generator() -> None:
    pixels = split(squares()).training
    assert torch.equal(augment(pixels, seeded()), augment(pixels, seeded()))
    assert not torch.equal(augment(pixels, seeded()), augment(pixels, seeded(1)))


def test_augment_moves_mirrors_and_colours_as_it_says() -> None:
    """A black dot off the middle: where it lands tells the move and the mirror, a corner tells the background."""
    dots = torch.zeros(2000, 4, SIZE, SIZE, dtype=torch.uint8)
    dots[:, 3, 8, 5] = 255
    pictures = augment(dots, seeded(), shift=1)
    dark = (pictures == -1.0).all(dim=1)
    corners = pictures[:, :, 0, 0]
    assert (dark.sum(dim=(1, 2)) == 1).all()
    places = {(y, x) for _, y, x in dark.nonzero().tolist()}
    assert places == {(y, x) for y in (7, 8, 9) for x in (4, 5, 6, 15 - 4, 15 - 5, 15 - 6)}
    assert float(dark[:, :, :8].any(dim=(1, 2)).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float((corners != 1.0).any(dim=1).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_reconstruction_loss_is_zero_for_equals_and_known_for_known_errors() -> None:
    pictures = torch.rand(2, 3, 8, 8, generator=seeded())
    assert reconstruction_loss(pictures, pictures).item() == 0.0
    assert reconstruction_loss(pictures + 0.5, pictures).item() == pytest.approx(0.5 + 2 * 0.25)  # no edge is wrong
    stripes = torch.zeros_like(pictures)
    stripes[..., ::2] = 0.5
    assert reconstruction_loss(pictures + stripes, pictures).item() == pytest.approx(0.25 + 2 * 0.125 + 0.5 * 0.5)


def test_kl_is_the_divergence_from_the_unit_gaussian() -> None:
    mean, log_variance = torch.randn(2, 4, 3, 3, generator=seeded()), torch.randn(2, 4, 3, 3, generator=seeded(1))
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl(mean, log_variance), expected)
    assert kl(torch.zeros(1), torch.zeros(1)).item() == 0.0


def stand_in(error: float) -> SimpleNamespace:
    """An autoencoder that returns its input, off by ``error`` everywhere."""
    return SimpleNamespace(encode=lambda pictures: pictures, decode=lambda latents: latents + error)


def test_psnr_of_known_errors() -> None:
    pictures = torch.rand(40, 3, 8, 8, generator=seeded()) - 0.5
    assert psnr(stand_in(0.0).encode, stand_in(0.0).decode, pictures) == math.inf
    assert psnr(stand_in(0.2).encode, stand_in(0.2).decode, pictures) == pytest.approx(
        20.0, abs=1e-4
    )  # a tenth of the range
    assert psnr(stand_in(0.02).encode, stand_in(0.02).decode, pictures) == pytest.approx(40.0, abs=1e-4)
    assert psnr(stand_in(9.0).encode, stand_in(9.0).decode, torch.ones(1, 3, 8, 8)) == math.inf  # beyond white is white


def test_latent_std_is_of_the_means() -> None:
    vae = SimpleNamespace(moments=lambda pictures: (3.0 * pictures, torch.full_like(pictures, 9.0)))
    pictures = torch.randn(50, 3, 16, 16, generator=seeded())
    assert latent_std(vae, pictures) == pytest.approx(3.0, rel=0.02)


def test_training_lowers_the_error_on_what_was_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = train_autoencoder(squares(), tmp_path / "autoencoder.pt", RECIPE, TINY, batch=4)
    pictures = on_white(split(squares()).held_out)
    torch.manual_seed(RECIPE.seed)
    untrained = autoencoder.VAE(TINY)
    before, after = (reconstruction_loss(v.decode(v.encode(pictures)).detach(), pictures) for v in (untrained, vae))
    assert after < 0.5 * before
    assert psnr(vae.encode, vae.decode, pictures) > psnr(untrained.encode, untrained.decode, pictures) + 3.0
    assert not vae.training
    assert f"step 40: {psnr(vae.encode, vae.decode, pictures):.2f} dB on 4 held-out drawings" in capsys.readouterr().out


def test_a_cut_and_resumed_run_equals_the_uncut_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(steps=6, peak_lr=5e-3, final_lr=1e-3, warmup=2, save_every_s=-1.0)
    uncut = train_autoencoder(squares(), tmp_path / "uncut.pt", recipe, TINY, batch=4).state_dict()
    calls = []

    def cut(pixels: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(pixels))
        if len(calls) == 4:
            raise Cut
        return augment(pixels, generator)

    monkeypatch.setattr(autoencoder, "augment", cut)
    with pytest.raises(Cut):
        train_autoencoder(squares(), tmp_path / "cut.pt", recipe, TINY, batch=4)
    resumed = train_autoencoder(squares(), tmp_path / "cut.pt", recipe, TINY, batch=4).state_dict()
    assert calls == [4] * 7  # the fourth step was begun twice, the first three were not done again
    torch.testing.assert_close(resumed, uncut, rtol=0.0, atol=0.0)
