"""SDXL against ``StableDiffusionXLPipeline``, its refiner against ``StableDiffusionXLImg2ImgPipeline``: prompts and
sizes, on random towers of different widths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from models.conditioners.condition import Condition
from models.conditioners.sdxl import Framing, SDXLConditioner, SDXLRefinerConditioner, size_features
from models.spec.unet import read_unet_spec
from tests.support.weighted_prompt import reference_context

Relative = Callable[[Tensor, Tensor], float]
LONG = "a red cat and a dog " * 12
PROMPTS = ["a red cat", "", "A  RED Cat!", "naïve café 7 \N{CAT FACE}"]
POOLED = 28
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def conditioner(sdxl_folder: Path) -> SDXLConditioner:
    return SDXLConditioner.load(sdxl_folder, read_unet_spec(sdxl_folder))


def published_sizes(published: StableDiffusionXLPipeline, width: int, height: int) -> Tensor:
    """The Fourier features that the published UNet makes of the published pipeline's time ids."""
    size = (height, width)
    ids = published._get_add_time_ids(size, (0, 0), size, torch.float32, text_encoder_projection_dim=POOLED)
    return published.unet.add_time_proj(ids.flatten()).flatten()


def encode_published(published: StableDiffusionXLPipeline, prompt: str, negative: str | None) -> list[Tensor]:
    """Context, negative context, pooled, negative pooled."""
    with torch.inference_mode():
        return [tensor[0] for tensor in published.encode_prompt(prompt, negative_prompt=negative)]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["words", "empty", "case", "unicode"])
def test_prompt(
    conditioner: SDXLConditioner,
    published: StableDiffusionXLPipeline,
    relative: Relative,
    prompt: str,
) -> None:
    context, _, pooled, _ = encode_published(published, prompt, None)
    condition = conditioner.encode(prompt, 40, 24)
    assert condition.context.shape == (20, 24 + 40) and condition.vector.shape == (POOLED + 6 * 8,)
    assert relative(condition.context, context) < TOLERANCE
    assert relative(condition.vector[:POOLED], pooled) < TOLERANCE


@pytest.mark.parametrize("size", [(40, 24), (1024, 768), (1, 1)])
def test_sizes(conditioner: SDXLConditioner, published: StableDiffusionXLPipeline, size: tuple[int, int]) -> None:
    expected = published_sizes(published, *size)
    assert torch.equal(size_features(*size, dim=8), expected)
    assert torch.equal(conditioner.encode("a dog", *size).vector[POOLED:], expected)


@pytest.mark.parametrize(("zeros", "empty"), [(True, None), (False, "")])
def test_empty_negative_prompt(
    conditioner: SDXLConditioner,
    published: StableDiffusionXLPipeline,
    sdxl_folder: Path,
    relative: Relative,
    zeros: bool,
    empty: str | None,
) -> None:
    """All zeros where the model was trained so, an encoded empty text elsewhere; the sizes stay."""
    chosen = SDXLConditioner.load(sdxl_folder, read_unet_spec(sdxl_folder), zeros)
    _, condition = chosen.encode_pair("a dog", "", 40, 24)
    _, context, _, pooled = encode_published(published, "a dog", empty)
    assert bool(context.any()) is not zeros
    torch.testing.assert_close(condition.context, context, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(condition.vector[:POOLED], pooled, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(condition.vector[POOLED:], published_sizes(published, 40, 24))


def test_negative_prompt(
    conditioner: SDXLConditioner, published: StableDiffusionXLPipeline, relative: Relative
) -> None:
    _, condition = conditioner.encode_pair("a red cat", "a dog", 40, 24)
    _, context, _, pooled = encode_published(published, "a red cat", "a dog")
    assert relative(condition.context, context) < TOLERANCE
    assert relative(condition.vector[:POOLED], pooled) < TOLERANCE


def test_a_long_prompt_begins_as_the_published_one_and_goes_on(
    conditioner: SDXLConditioner, published: StableDiffusionXLPipeline, relative: Relative
) -> None:
    context, _, pooled, _ = encode_published(published, LONG, None)
    condition = conditioner.encode(LONG, 40, 24)
    assert condition.context.shape == (120, 64)
    assert relative(condition.context[:20], context) < TOLERANCE
    assert relative(condition.vector[:POOLED], pooled) < TOLERANCE
    assert not same(condition, conditioner.encode(LONG + "a red dog", 40, 24))


def test_training_cuts_a_long_prompt_and_keeps_its_end_token(conditioner: SDXLConditioner) -> None:
    for tower in (0, 1):
        ids = conditioner.tokenize([LONG], tower)
        assert ids.shape == (1, 20)
        assert ids[0, -1] == conditioner.text.towers[tower].tokenizer.eos_token_id


def test_training_and_serving_encode_alike(conditioner: SDXLConditioner) -> None:
    ids = [conditioner.tokenize(["a red cat"], tower) for tower in (0, 1)]
    with torch.inference_mode():
        context, pooled = conditioner.encode_tokens(ids)
    condition = conditioner.encode("a red cat", 40, 24)
    assert torch.equal(context[0], condition.context)
    assert torch.equal(pooled[0], condition.vector[:POOLED])


@pytest.mark.parametrize(
    ("prompt", "negative", "tokens"),
    [(LONG, "", 120), (LONG, "a dog", 120), ("a dog", LONG, 120), ("a cat", "a dog", 20)],
)
def test_pairs_have_equally_many_tokens(conditioner: SDXLConditioner, prompt: str, negative: str, tokens: int) -> None:
    conditions = conditioner.encode_pair(prompt, negative, 40, 24)
    empty = conditioner.encode("", 40, 24).context
    for condition, text in zip(conditions, (prompt, negative), strict=True):
        assert condition.context.shape == (tokens, 64)
        alone = conditioner.encode(text, 40, 24)
        filled = torch.cat([alone.context, *[empty] * ((tokens - len(alone.context)) // 20)])
        assert torch.equal(condition.context, filled if text else torch.zeros(tokens, 64))
        assert torch.equal(condition.vector[POOLED:], alone.vector[POOLED:])
        assert torch.equal(condition.vector, alone.vector) is bool(text)


def test_weights(conditioner: SDXLConditioner, relative: Relative) -> None:
    """Each tower restores its own mean."""
    weighted, plain = (conditioner.encode(text, 40, 24) for text in ("a (red:1.4) cat", "a red cat"))
    parts = [[("a ", 1.0), ("red", 1.4), (" cat", 1.0)]]
    pairs = zip(conditioner.text.towers, conditioner.networks, strict=True)
    expected = torch.cat([reference_context(tower.tokenizer, text.clip, parts, True) for tower, text in pairs], dim=1)
    assert relative(weighted.context, expected) < 1e-5
    assert relative(plain.context, expected) > 1e-2
    assert torch.equal(weighted.vector, plain.vector)


@pytest.mark.parametrize("framing", [Framing((1500, 700), (16, 48)), Framing(crop=(8, 0)), Framing((90, 80))])
def test_framing(conditioner: SDXLConditioner, published: StableDiffusionXLPipeline, framing: Framing) -> None:
    """Darkroom says width before height and left before top, the published network the other way round."""
    (width, height), (left, top) = framing.original_size or (40, 24), framing.crop
    ids = published._get_add_time_ids(
        (height, width), (top, left), (24, 40), torch.float32, text_encoder_projection_dim=POOLED
    )
    expected = published.unet.add_time_proj(ids.flatten()).flatten()
    for condition in (
        conditioner.encode("a dog", 40, 24, framing),
        *conditioner.encode_pair("a dog", "", 40, 24, framing),
        *conditioner.encode_pair("a dog", "a cat", 40, 24, framing),
    ):
        assert torch.equal(condition.vector[POOLED:], expected)
    swapped = Framing((height, width), (top, left))
    assert not torch.equal(conditioner.encode("a dog", 40, 24, swapped).vector[POOLED:], expected)


@pytest.fixture(scope="module")
def refiner(refiner_folder: Path) -> SDXLRefinerConditioner:
    return SDXLRefinerConditioner.load(refiner_folder, read_unet_spec(refiner_folder))


@pytest.fixture(scope="module")
def published_refiner(refiner_folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    return StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner_folder, add_watermarker=False)


@pytest.mark.parametrize("negative", [None, "a dog"])
def test_refiner_prompts(
    refiner: SDXLRefinerConditioner,
    published_refiner: StableDiffusionXLImg2ImgPipeline,
    relative: Relative,
    negative: str | None,
) -> None:
    """An empty negative prompt is an encoded empty text."""
    with torch.inference_mode():
        expected = [text[0] for text in published_refiner.encode_prompt("a red cat", negative_prompt=negative)]
    positive, other = refiner.encode_pair("a red cat", negative or "", 40, 24)
    assert positive.context.shape == (20, 40)
    assert relative(positive.context, expected[0]) < TOLERANCE
    assert relative(other.context, expected[1]) < TOLERANCE
    assert relative(positive.vector[:POOLED], expected[2]) < TOLERANCE
    assert relative(other.vector[:POOLED], expected[3]) < TOLERANCE
    assert relative(positive.context, expected[1]) > 0.1


@pytest.mark.parametrize("framing", [Framing(), Framing((1500, 700), (16, 48))])
def test_refiner_sizes_and_scores(
    refiner: SDXLRefinerConditioner, published_refiner: StableDiffusionXLImg2ImgPipeline, framing: Framing
) -> None:
    (width, height), (left, top) = framing.original_size or (40, 24), framing.crop
    original, crop = (height, width), (top, left)
    ids = published_refiner._get_add_time_ids(
        original, crop, (24, 40), 6.0, 2.5, original, crop, (24, 40), torch.float32, POOLED
    )
    expected = [published_refiner.unet.add_time_proj(one.flatten()).flatten() for one in ids]
    assert not torch.equal(*expected)
    pair = refiner.encode_pair("a red cat", "", 40, 24, framing)
    for condition, features in zip(pair, expected, strict=True):
        assert torch.equal(condition.vector[POOLED:], features)
    swapped = refiner.encode_pair("a red cat", "", 40, 24, framing, aesthetic_score=2.5, negative_aesthetic_score=6.0)
    assert torch.equal(swapped[0].vector[POOLED:], expected[1])
    assert torch.equal(swapped[1].vector[POOLED:], expected[0])


def test_a_long_refiner_prompt_has_chunks(refiner: SDXLRefinerConditioner) -> None:
    positive, negative = refiner.encode_pair(LONG, "a dog", 40, 24)
    assert positive.context.shape == negative.context.shape == (120, 40)
    empty = refiner.encode("", 40, 24).context
    assert torch.equal(negative.context[20:], torch.cat([empty] * 5))


def test_a_unet_with_another_vector_is_refused(sdxl_folder: Path, refiner_folder: Path) -> None:
    with pytest.raises(ValueError, match="input_dim=68, expected 76: 28 of pooled text and 6 numbers"):
        SDXLConditioner.load(sdxl_folder, read_unet_spec(refiner_folder))
    with pytest.raises(ValueError, match="input_dim=76, expected 68: 28 of pooled text and 5 numbers"):
        SDXLRefinerConditioner.load(refiner_folder, read_unet_spec(sdxl_folder))


def test_the_towers_pad_their_own_way(conditioner: SDXLConditioner) -> None:
    first, second = (conditioner.tokenize(["a dog"], tower) for tower in (0, 1))
    differ = first != second
    assert not differ[0, :4].any() and differ[0, 4:].all()  # start, a, dog, end; then padding


def test_words_and_their_order_matter(conditioner: SDXLConditioner, relative: Relative) -> None:
    """A control: towers that ignore their input would pass every test above."""
    expected = conditioner.encode("a red cat", 40, 24)
    for prompt in ("a red dog", "a cat red", "cat"):
        condition = conditioner.encode(prompt, 40, 24)
        assert relative(condition.context, expected.context) > 0.5
        assert relative(condition.vector[:POOLED], expected.vector[:POOLED]) > 0.1


def test_vocabulary_files_of_older_folders_read_the_same(
    conditioner: SDXLConditioner, sdxl_folder: Path, tmp_path: Path
) -> None:
    """``vocab.json`` and ``merges.txt``, as published, instead of the one file that is written today."""
    for tower, name in enumerate(("tokenizer", "tokenizer_2")):
        shutil.copytree(sdxl_folder / name, tmp_path / name)
        model = json.loads((tmp_path / name / "tokenizer.json").read_text())["model"]
        (tmp_path / name / "tokenizer.json").unlink()
        (tmp_path / name / "vocab.json").write_text(json.dumps(model["vocab"]))
        (tmp_path / name / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
        older = CLIPTokenizer.from_pretrained(tmp_path / name)
        ids = older(
            [*PROMPTS, LONG], padding="max_length", truncation=True, max_length=20, return_tensors="pt"
        ).input_ids
        assert torch.equal(conditioner.tokenize([*PROMPTS, LONG], tower), ids)


def same(one: Condition, other: Condition) -> bool:
    return torch.equal(one.context, other.context) and torch.equal(one.vector, other.vector)
