"""The whole making of a model, from drawings to a folder, at a size that takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from models.families.row import advance
from models.families.text_to_image import TextToImageModel, decode, generate, load, prepare, start_row
from models.guidance import Guidance
from models.plan import make_plan
from models.spec.vae import TinyAutoencoderSpec, VAESpec
from models.training import autoencoder, diffusion, emoji_xl, profile, text, tiny_autoencoder
from models.training.artwork import Drawings
from models.training.autoencoder import SPEC, on_white, split
from models.training.concepts import CAPTION_STYLES, CONCEPTS, by_slug
from models.training.diffusion import UNET_CONFIG, Examples, TextToImageNetworks, train_diffusion
from models.training.emoji_xl import SERVING, caption_corpus, new_conditioner, train_emoji_xl, vae_config
from models.training.loop import Recipe
from models.training.profile import Profile
from models.training.tiny_autoencoder import train_tiny_autoencoder
from models.vae import VAE
from models.weights import load_tiny_decoder, load_vae

FEW = by_slug(["red-heart", "fox", "pizza", "star"])
HELD_OUT = {("star", "noto")}
SIZE = 64
RECIPE = Recipe(steps=6, peak_lr=3e-3, final_lr=1e-3, warmup=2, ema=0.5, save_every_s=-1.0)
SECOND_RECIPE = replace(RECIPE, seed=1)
TINY_VAE = VAESpec(
    latent_channels=8,
    block_out_channels=(8, 8, 8, 16),
    layers_per_block=1,
    norm_num_groups=1,
    scaling_factor=1.0,
    force_upcast=False,
)
TINY_DECODER = TinyAutoencoderSpec(
    latent_channels=8,
    encoder_block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 8, 8, 8),
    num_encoder_blocks=(1, 1, 1, 1),
    num_decoder_blocks=(1, 1, 1, 1),
)
TINY_UNET = {**UNET_CONFIG, "block_out_channels": [32, 32], "attention_head_dim": [2, 2]}
PROMPT, OTHER_PROMPT = "a fox 3d", "pizza noto"
STEPS, GUIDANCE = 4, 7.5  # strong, so that a barely trained network hears the prompt
LEVEL = 1.0 / 255.0


class Cut(Exception):
    """Stands in for a kill."""


def discs() -> Drawings:
    """A disc of its own size and colour for each concept and style."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    pairs = [(concept, style) for concept in range(len(FEW)) for style in range(3)]
    pixels = np.zeros((len(pairs), SIZE, SIZE, 4), np.uint8)
    for picture, (concept, style) in zip(pixels, pairs, strict=True):
        picture[np.hypot(x, y) < 12 + 4 * concept] = (80 * concept, 100 * style, 120, 255)
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    slugs, names = tuple(c.slug for c in FEW), tuple(c.name for c in FEW)
    return Drawings(pixels, concept, style, slugs, names, names, (("thing", "ice_cream"),) * len(FEW), CAPTION_STYLES)


@pytest.fixture(scope="module", autouse=True)
def small_world() -> Iterator[None]:
    """Four concepts, two of them at first, networks of a few channels, six steps a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_xl, "download", lambda _folder: None)
        patch.setattr(emoji_xl, "render", lambda _folder: discs())
        patch.setattr(emoji_xl, "FIRST_CONCEPTS", FEW[:2])
        for module in (emoji_xl, profile):
            patch.setattr(module, "CONCEPTS", FEW)
        patch.setattr(emoji_xl, "HELD_OUT", HELD_OUT)
        patch.setattr(emoji_xl, "SCENES", 5)
        patch.setattr(emoji_xl, "RECIPE", RECIPE)
        patch.setattr(emoji_xl, "SECOND_RECIPE", SECOND_RECIPE)
        patch.setattr(emoji_xl, "SPEC", TINY_VAE)
        patch.setattr(emoji_xl, "train_tiny_autoencoder", partial(train_tiny_autoencoder, spec=TINY_DECODER))
        patch.setattr(emoji_xl, "UNET_CONFIG", TINY_UNET)
        for module in (autoencoder, diffusion, tiny_autoencoder):
            patch.setattr(module, "BATCH", 4)
        for module in (autoencoder, tiny_autoencoder):
            patch.setattr(module, "RECIPE", RECIPE)
        patch.setattr(autoencoder, "HELD_OUT", 2)
        patch.setattr(text, "LAYERS", 2)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the uncut run worked; its model lies in "made"."""
    folder = tmp_path_factory.mktemp("work")
    train_emoji_xl(folder, folder / "made")
    return folder


@pytest.fixture(scope="module")
def published(work: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(work / "made", add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ours(work: Path) -> TextToImageModel:
    return load(work / "made")


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def picture_of(model: TextToImageModel, prompt: str, seed: int) -> np.ndarray:
    plan = make_plan(model.schedule, "ddim", STEPS, Guidance(GUIDANCE))
    row = start_row(model, plan, prepare(model, prompt, "", True, SIZE, SIZE), seed, (SIZE, SIZE))
    while not row.finished:
        advance(model.denoisers, [row])
    return decode(model.decoder, [row])[0] / 255.0


def test_diffusers_and_darkroom_draw_the_same_picture(published, ours) -> None:
    assert isinstance(published.scheduler, DDIMScheduler)
    expected = published(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=SIZE,
        height=SIZE,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    picture = picture_of(ours, PROMPT, 3)
    assert expected.shape == picture.shape and expected.std() > 10 * LEVEL
    assert np.abs(picture - expected).max() <= 2 * LEVEL
    for prompt, seed in ((OTHER_PROMPT, 3), (PROMPT, 4)):  # controls: no picture would do as well
        assert np.abs(picture_of(ours, prompt, seed) - expected).max() > 4 * LEVEL


def test_the_folder_loads_in_fp32_without_being_asked_to(published) -> None:
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert {parameter.dtype for parameter in getattr(published, name).parameters()} == {torch.float32}, name


def test_the_folder_recommends_what_it_was_made_for(ours, work: Path) -> None:
    assert ours.spec.sizes == ((SIZE, SIZE),) and ours.latent_channels == 8 and ours.downscale == 8
    assert (ours.spec.steps, ours.spec.guidance, ours.spec.solver) == tuple(
        SERVING[key] for key in ("steps", "guidance", "solver")
    )
    assert ours.spec.zeros_for_empty_prompt
    assert generate(ours, PROMPT, seed=0, steps=2).shape == (SIZE, SIZE, 3)


def test_latents_have_unit_spread(work: Path) -> None:
    vae = load_vae(work / "made")
    with torch.inference_mode():
        latents = vae.encode(on_white(split(discs()).training))
    assert vae.spec.scaling_factor != 1.0
    assert float(latents.std()) == pytest.approx(1.0, rel=0.01)


def test_the_average_of_the_towers_is_what_is_exported(work: Path, ours) -> None:
    state = torch.load(work / "scenes.pt", weights_only=True)
    for i, tower in enumerate(ours.conditioner.networks):
        name, weight = next(iter(tower.state_dict().items()))
        assert torch.equal(weight, state["average"][f"towers.{i}.{name}"])
        assert not torch.equal(weight, state["network"][f"towers.{i}.{name}"])


def test_the_second_stage_goes_on_from_the_average_of_the_first(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []

    def witness(
        examples: Examples, networks: TextToImageNetworks, checkpoint: Path, recipe: Recipe, batch: int
    ) -> object:
        weights = {name: weight.clone() for name, weight in networks.state_dict().items()}
        learns = all(parameter.requires_grad for parameter in networks.parameters())
        stages.append((examples, weights, learns, recipe))
        return train_diffusion(examples, networks, checkpoint, recipe, batch)

    monkeypatch.setattr(emoji_xl, "train_diffusion", witness)
    train_emoji_xl(work, work / "again")
    (first, untrained, *first_rest), (second, begun, *second_rest) = stages
    assert first_rest == [True, RECIPE] and second_rest == [True, SECOND_RECIPE]
    average = torch.load(work / "diffusion.pt", weights_only=True)["average"]
    assert all(torch.equal(begun[name], weight) for name, weight in average.items())
    assert not torch.equal(begun["unet.conv_in.weight"], untrained["unet.conv_in.weight"])
    assert first.scenes is None and {concept for concept, _ in first.captioned} == set(FEW[:2])
    told = {(concept.slug, style) for concept, style in second.captioned}
    assert told == {(concept.slug, style) for concept in FEW for style in CAPTION_STYLES} - HELD_OUT
    assert len(second.scene_captions) == 5


def test_a_larger_profile_takes_more_of_everything(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def witness(
        examples: Examples, networks: TextToImageNetworks, _checkpoint: Path, recipe: Recipe, batch: int
    ) -> TextToImageNetworks:
        asked.append((len({style for _, style in examples.captioned}), recipe.steps, batch))
        return networks

    monkeypatch.setattr(emoji_xl, "train_diffusion", witness)
    monkeypatch.setattr(profile, "CAPTION_STYLES", CAPTION_STYLES[:1])
    train_emoji_xl(work, work / "larger", Profile(steps=1, batch=2))
    train_emoji_xl(work, work / "larger", Profile(steps=1, batch=3, everything=True))
    assert asked == [(1, 6, 8), (1, 6, 8), (3, 6, 12), (3, 6, 12)]


def test_the_small_decoder_lies_beside_the_large_one(work: Path) -> None:
    state = torch.load(work / "tiny-autoencoder.pt", weights_only=True)["average"]
    tiny = load_tiny_decoder(work / "made" / "vae_tiny").state_dict()
    assert {name: weight.half().float() for name, weight in state.items()}.keys() == tiny.keys()
    assert all(torch.equal(state[name].half().float(), weight.float()) for name, weight in tiny.items())


def test_a_run_that_was_cut_three_times_makes_the_same_folder(work: Path, tmp_path: Path) -> None:
    for owner, name, call in ((autoencoder, "augment", 4), (Examples, "draw", 3), (Examples, "draw", 7)):
        original, calls = getattr(owner, name), iter(range(1, call + 1))

        def cut(*arguments, original=original, calls=calls, last=call):
            if next(calls) == last:
                raise Cut
            return original(*arguments)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
            patch.setattr(owner, name, cut)
            train_emoji_xl(tmp_path, tmp_path / "made")
        assert not (tmp_path / "made").exists()
    train_emoji_xl(tmp_path, tmp_path / "made")
    assert hashes(tmp_path / "made") == hashes(work / "made")


def test_a_half_written_vocabulary_is_made_again(work: Path, tmp_path: Path) -> None:
    whole = CLIPTokenizer.from_pretrained(work / "tokenizer").get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, text.START: 1, text.END: 2}))
    assert new_conditioner(discs(), tmp_path).text.towers[0].tokenizer.get_vocab() == whole
    kept = hashes(tmp_path)
    nameless = new_conditioner(Drawings(**{**vars(discs()), "names": ()}), tmp_path)
    assert nameless.text.towers[0].tokenizer.get_vocab() == whole
    assert hashes(tmp_path) == kept


def test_the_vocabulary_is_learnt_from_all_that_may_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_xl, "CONCEPTS", CONCEPTS)
    corpus = list(caption_corpus(discs()))
    words = {word for line in corpus for word in line.split()}
    assert {
        word for concept in CONCEPTS for name in (concept.name, *concept.synonyms) for word in name.split()
    } <= words
    assert {*CAPTION_STYLES, "thing", "cream", "left", "five", "purple", "background"} <= words
    assert "a picture of a fox 3d" in corpus


def test_the_shipped_autoencoder_config_is_one_diffusers_knows() -> None:
    config = vae_config(SPEC)
    theirs = AutoencoderKL.from_config(config)
    assert VAESpec.from_config(json.loads(json.dumps(config))) == SPEC
    shapes = {name: tensor.shape for name, tensor in VAE(SPEC).state_dict().items()}
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == shapes
