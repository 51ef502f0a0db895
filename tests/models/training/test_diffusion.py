"""The diffusion training: what it draws, what it asks of the network, and that a short run learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.conditioners.sdxl import SDXLConditioner, size_features
from models.schedule import Schedule
from models.spec.unet import UNetSpec
from models.spec.vae import VAESpec
from models.training import diffusion, text
from models.training.artwork import Drawings
from models.training.autoencoder import on_white
from models.training.concepts import CAPTION_STYLES, by_slug, captions
from models.training.diffusion import (
    SCENE_SHARE,
    SCHEDULER_CONFIG,
    UNET_CONFIG,
    Examples,
    Posterior,
    TextToImageNetworks,
    train_diffusion,
    without,
)
from models.training.loop import LossFunction, Recipe
from models.training.scenes import cast, draw, random_scenes
from models.training.text import beside, new_towers, write_tokenizer
from models.unet import UNet
from models.vae import VAE
from tests.support.tiny_xl import randomise

CONCEPTS = by_slug(["red-heart", "fox"])
STYLES = (*CAPTION_STYLES, "fx")  # one more than is learnt
SIZE = 32
TINY_VAE = VAESpec(
    latent_channels=8, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=1, scaling_factor=1.0
)
TINY_UNET = {**UNET_CONFIG, "block_out_channels": [32, 32], "attention_head_dim": [2, 2]}
TIME_ID_DIM = UNET_CONFIG["addition_time_embed_dim"]
RECIPE = Recipe(steps=30, peak_lr=5e-3, final_lr=1e-3, warmup=5, ema=0.9)
SHORT = Recipe(steps=4, peak_lr=5e-3, final_lr=1e-3, warmup=2, save_every_s=-1.0)


class Cut(Exception):
    """Stands in for a kill."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LAYERS", 2)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return randomise(VAE(TINY_VAE), 1)


@pytest.fixture
def examples(vae: VAE) -> Examples:
    return Examples(bars(), CONCEPTS, vae)


@pytest.fixture
def new_conditioner(tmp_path: Path) -> Callable[[], SDXLConditioner]:
    """Each call gives the same untrained towers."""
    tokenizer = write_tokenizer([], tmp_path / "tokenizer")
    return lambda: SDXLConditioner(beside(tokenizer, new_towers(tokenizer, 0)), TIME_ID_DIM, zeros_for_empty=True)


def bars() -> Drawings:
    """A bar for each concept and style, and one concept more than is learnt."""
    slugs = (*(concept.slug for concept in CONCEPTS), "pizza")
    pairs = [(concept, style) for concept in range(3) for style in range(4)]
    pixels = np.zeros((len(pairs), SIZE, SIZE, 4), np.uint8)
    for picture, (concept, style) in zip(pixels, pairs, strict=True):
        picture[:, 8 * concept : 8 * concept + 12] = (60 * style, 200, 100 * concept, 255)
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    return Drawings(pixels, concept, style, slugs, slugs, slugs, ((),) * 3, STYLES)


def certain(posterior: Posterior, count: int | None = None) -> Posterior:
    """Its first means, without spread."""
    return Posterior(posterior.mean[:count], torch.zeros_like(posterior.std[:count]))


def new_networks(conditioner: SDXLConditioner) -> TextToImageNetworks:
    torch.manual_seed(0)
    return TextToImageNetworks(UNet(UNetSpec.from_config(TINY_UNET)), conditioner)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(
    unet: nn.Module,
    examples: Examples,
    conditioner: SDXLConditioner,
    monkeypatch: pytest.MonkeyPatch,
    batch: int = 8,
) -> LossFunction:
    """The loss function that would be trained with, on a UNet that stands in."""
    unet.spec = SimpleNamespace(time_id_dim=TIME_ID_DIM)
    monkeypatch.setattr(diffusion, "train", lambda _networks, loss, *_: loss)
    return train_diffusion(examples, TextToImageNetworks(unet, conditioner), Path("never written"), batch=batch)


def test_examples_are_the_latents_of_the_captioned_drawings(examples: Examples, vae: VAE) -> None:
    names = [(concept.slug, style) for concept, style in examples.captioned]
    assert names == [(concept.slug, style) for concept in CONCEPTS for style in CAPTION_STYLES]
    chosen = bars().select([concept.slug for concept in CONCEPTS], CAPTION_STYLES)
    pictures = on_white(torch.from_numpy(chosen.pixels).permute(0, 3, 1, 2))
    assert len(examples) == 6 and examples.size == SIZE
    singles, one = examples.singles, torch.ones_like(examples.singles.mean)
    torch.testing.assert_close(singles.mean, vae.encode(pictures))
    torch.testing.assert_close(singles.mean + singles.std, vae.encode(pictures, one))


def test_drawn_latents_come_with_captions_of_their_own_drawing(examples: Examples) -> None:
    examples.singles = certain(examples.singles)
    latents, texts = examples.draw(200, seeded())
    far = (latents[:, None] - examples.singles.mean).flatten(2).abs().amax(dim=2)
    assert (far.amin(dim=1) == 0.0).all()
    picked = far.argmin(dim=1).tolist()
    assert set(picked) == set(range(6))
    assert all(text in captions(*examples.captioned[i]) for i, text in zip(picked, texts, strict=True))
    assert len(set(texts)) > 12


def test_held_out_pairs_are_never_drawn_alone_or_in_scenes(vae: VAE) -> None:
    hidden = {(CONCEPTS[1].slug, CAPTION_STYLES[2]), (CONCEPTS[0].slug, CAPTION_STYLES[0])}
    examples = Examples(bars(), CONCEPTS, vae, hidden, scenes=200)
    told = [(concept.slug, style) for concept, style in examples.captioned]
    assert len(examples) == len(told) == 4 and not hidden & set(told)
    _, texts = examples.draw(300, seeded())
    for slug, style in hidden:
        names = next((c.name, *c.synonyms) for c in CONCEPTS if c.slug == slug)
        said = [text for text in (*texts, *examples.scene_captions) if text.split()[-1] == style]
        assert said and not [text for text in said if any(name in text for name in names)]
        every = Examples(bars(), CONCEPTS, vae, scenes=200).scene_captions  # a control: it is the pairs that do it
        assert [text for text in every if text.split()[-1] == style and names[0] in text]


def test_without_leaves_the_tables_as_they_are() -> None:
    fewer = without(bars(), {("fox", "noto"), ("fox", "no such style")})
    rows = [(fewer.slugs[c], fewer.styles[s]) for c, s in zip(fewer.concept, fewer.style, strict=True)]
    assert len(fewer.pixels) == len(rows) == 11 and ("fox", "noto") not in rows
    assert fewer.slugs == bars().slugs and len(without(bars(), ())) == 12


def test_a_share_of_every_batch_is_scenes_with_their_captions(vae: VAE) -> None:
    examples = Examples(bars(), CONCEPTS, vae, scenes=10, scene_seed=3)
    chosen = bars().select([concept.slug for concept in CONCEPTS], CAPTION_STYLES)
    drawn = random_scenes(cast(chosen, CONCEPTS), 10, 3)
    assert examples.scenes is not None and examples.scene_captions == [scene.caption for scene in drawn]
    pictures = torch.from_numpy(np.stack([draw(scene, chosen) for scene in drawn])).permute(0, 3, 1, 2)
    torch.testing.assert_close(examples.scenes.mean, vae.encode(pictures / 127.5 - 1.0))
    examples.singles, examples.scenes = certain(examples.singles), certain(examples.scenes)
    latents, texts = examples.draw(100, seeded())
    of_scenes = round(100 * SCENE_SHARE)
    assert len(latents) == len(texts) == 100 and 0 < of_scenes < 100
    for latent, said in zip(latents[-of_scenes:], texts[-of_scenes:], strict=True):
        found = [torch.equal(latent, mean) for mean in examples.scenes.mean]
        assert said in [examples.scene_captions[i] for i, same in enumerate(found) if same]
    every = {text for captioned in examples.captioned for text in captions(*captioned)}
    assert set(texts[:-of_scenes]) <= every


def test_another_seed_draws_other_scenes(vae: VAE) -> None:
    one, other = (Examples(bars(), CONCEPTS, vae, scenes=10, scene_seed=seed).scene_captions for seed in (0, 1))
    assert one != other


def test_drawn_latents_follow_the_posterior(examples: Examples) -> None:
    one = Posterior(examples.singles.mean[:1], examples.singles.std[:1])
    latents = one.sample(torch.zeros(4000, dtype=torch.long), seeded())
    assert ((latents.mean(dim=0) - one.mean[0]).abs() / one.std[0]).max() < 6.0 * 4000**-0.5
    assert (latents.std(dim=0) / one.std[0] - 1.0).abs().max() < 0.1


def test_draws_follow_their_generator(examples: Examples) -> None:
    latents, texts = examples.draw(8, seeded())
    again, same_texts = examples.draw(8, seeded())
    other, _ = examples.draw(8, seeded(1))
    assert torch.equal(latents, again) and texts == same_texts
    assert not torch.equal(latents, other)


@torch.no_grad()
def mean_loss(loss: LossFunction) -> float:
    """Over the same draws each time."""
    return float(np.mean([loss(0, seeded(n)).item() for n in range(4)]))


class Ideal(nn.Module):
    """Knows the one drawing there is, and so the noise and v = alpha noise - sigma drawing (Salimans and Ho 2022,
    appendix D)."""

    def __init__(self, drawing: Tensor) -> None:
        super().__init__()
        self.drawing = drawing
        self.abar = torch.tensor(Schedule.from_config(SCHEDULER_CONFIG).alphas_cumprod)

    def forward(self, x: Tensor, c_noise: Tensor, _context: Tensor, _vector: Tensor) -> Tensor:
        abar = self.abar[c_noise.long()][:, None, None, None]
        noise = (x - abar.sqrt() * self.drawing) / (1 - abar).sqrt()
        return abar.sqrt() * noise - (1 - abar).sqrt() * self.drawing


def test_the_ideal_network_has_no_loss(examples, new_conditioner, monkeypatch) -> None:
    examples.singles = certain(examples.singles, 1)
    drawing = examples.singles.mean
    loss = loss_of(Ideal(drawing), examples, new_conditioner(), monkeypatch)
    assert max(loss(step, seeded(step)).item() for step in range(20)) < 1e-6
    wrong = loss_of(Ideal(-drawing), examples, new_conditioner(), monkeypatch)
    assert min(wrong(step, seeded(step)).item() for step in range(20)) > 0.01


class Witness(nn.Module):
    """Keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.seen.append(tuple(tensor.detach().float() for tensor in inputs))
        return inputs[0]


def test_a_tenth_of_the_captions_is_dropped_but_never_the_sizes(examples, new_conditioner, monkeypatch) -> None:
    witness = Witness()
    loss = loss_of(witness, examples, new_conditioner(), monkeypatch, batch=100)
    for step in range(4):
        loss(step, seeded(step))
    _, times, context, vector = (torch.cat(column) for column in zip(*witness.seen, strict=True))
    pooled, sizes = vector.split([vector.shape[1] - 6 * TIME_ID_DIM, 6 * TIME_ID_DIM], dim=1)
    dropped = (context == 0.0).all(dim=2).all(dim=1)
    assert torch.equal(dropped, (pooled == 0.0).all(dim=1))
    assert 0.05 < float(dropped.float().mean()) < 0.16
    assert torch.equal(sizes, size_features(SIZE, SIZE, TIME_ID_DIM).expand(400, -1))
    assert 0 <= times.min() < 30 and 970 <= times.max() <= 999 and times.mean().item() == pytest.approx(500, abs=50)


def test_a_short_run_learns_networks_and_towers(examples, new_conditioner, monkeypatch, tmp_path) -> None:
    examples.singles = certain(examples.singles)  # six latents: few enough to learn by heart
    losses: list[float] = []
    train = diffusion.train

    def measured(networks: nn.Module, loss: LossFunction, recipe: Recipe, checkpoint: Path) -> nn.Module:
        losses.append(mean_loss(loss))
        average = train(networks, loss, recipe, checkpoint)
        losses.append(mean_loss(loss))
        return average

    monkeypatch.setattr(diffusion, "train", measured)
    networks = train_diffusion(examples, new_networks(new_conditioner()), tmp_path / "diffusion.pt", RECIPE, 8)
    before, after = losses
    assert before > 0.4 and after < 0.75 * before
    for trained, untrained in zip(networks.conditioner.networks, new_conditioner().networks, strict=True):
        assert not torch.equal(trained.clip.get_input_embeddings().weight, untrained.clip.get_input_embeddings().weight)
    assert networks.conditioner.networks[0] is networks.towers[0]  # the average's own towers, not the trained ones


@pytest.fixture
def weights(examples, new_conditioner, tmp_path) -> Callable[..., dict[str, Tensor]]:
    """(checkpoint name, recipe) -> weights after a run in a new process, as it were."""

    def run(name: str, recipe: Recipe = SHORT) -> dict[str, Tensor]:
        networks = new_networks(new_conditioner())
        return train_diffusion(examples, networks, tmp_path / name, recipe, 8).state_dict()

    return run


def test_a_cut_and_resumed_run_equals_the_uncut_run(weights, monkeypatch) -> None:
    uncut = weights("uncut.pt")
    draw, calls = Examples.draw, []

    def cut(self: Examples, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        calls.append(count)
        if len(calls) == 3:
            raise Cut
        return draw(self, count, generator)

    monkeypatch.setattr(Examples, "draw", cut)
    with pytest.raises(Cut):
        weights("cut.pt")
    resumed = weights("cut.pt")
    assert calls == [8] * 5  # the third step was begun twice, the first two were not done again
    torch.testing.assert_close(resumed, uncut, rtol=0.0, atol=0.0)
    other = weights("other.pt", Recipe(**{**vars(SHORT), "seed": 1}))
    assert not torch.equal(other["unet.conv_in.weight"], uncut["unet.conv_in.weight"])
