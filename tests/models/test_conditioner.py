"""Prompts and sizes against ``StableDiffusionXLPipeline.encode_prompt`` on two random towers of different widths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from models.conditioner import Condition, SDXLConditioner, size_features
from models.spec.unet import read_unet_spec

Relative = Callable[[Tensor, Tensor], float]
LONG = "a red cat and a dog " * 12
PROMPTS = ["a red cat", "", "A  RED Cat!", "naïve café 7 \N{CAT FACE}", LONG]
POOLED = 28
TOLERANCE = 1e-5


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


@pytest.mark.parametrize("prompt", PROMPTS, ids=["words", "empty", "case", "unicode", "long"])
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
    condition = chosen.encode_negative("", 40, 24)
    _, context, _, pooled = encode_published(published, "a dog", empty)
    assert bool(context.any()) is not zeros
    torch.testing.assert_close(condition.context, context, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(condition.vector[:POOLED], pooled, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(condition.vector[POOLED:], published_sizes(published, 40, 24))


def test_negative_prompt(
    conditioner: SDXLConditioner, published: StableDiffusionXLPipeline, relative: Relative
) -> None:
    condition = conditioner.encode_negative("a dog", 40, 24)
    _, context, _, pooled = encode_published(published, "a red cat", "a dog")
    assert relative(condition.context, context) < TOLERANCE
    assert relative(condition.vector[:POOLED], pooled) < TOLERANCE


def test_a_long_prompt_is_cut_and_keeps_its_end_token(conditioner: SDXLConditioner) -> None:
    for tower in (0, 1):
        ids = conditioner.tokenize([LONG], tower)
        assert ids.shape == (1, 20)
        assert ids[0, -1] == conditioner.tokenizers[tower].eos_token_id
    assert same(conditioner.encode(LONG, 40, 24), conditioner.encode(LONG + "never seen", 40, 24))


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
        ids = older(PROMPTS, padding="max_length", truncation=True, max_length=20, return_tensors="pt").input_ids
        assert torch.equal(conditioner.tokenize(PROMPTS, tower), ids)


def same(one: Condition, other: Condition) -> bool:
    return torch.equal(one.context, other.context) and torch.equal(one.vector, other.vector)
