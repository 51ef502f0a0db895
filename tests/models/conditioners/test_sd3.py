"""Stable Diffusion 3 against ``StableDiffusion3Pipeline.encode_prompt``, with its third text encoder and without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from models.conditioners.sd3 import SD3Conditioner, T5Tower
from tests.support.tiny_towers import POOLED, T5_WIDTH
from tests.support.weighted_prompt import reference_context

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-6
CLIP_TOKENS, CLIP_WIDTH = 20, 24 + 40
SIZE = (32, 32)
PROMPTS = [("a red cat", ""), ("", "a dog and a cat"), ("A  red Cat!", "naïve café 7 \N{CAT FACE}")]


def encode_published(pipeline: StableDiffusion3Pipeline, prompt: str, negative: str, tokens: int) -> list[Tensor]:
    """Context, negative context, pooled, negative pooled."""
    with torch.inference_mode():
        texts = pipeline.encode_prompt(
            prompt, None, None, negative_prompt=negative, max_sequence_length=tokens, device="cpu"
        )
    return [text[0] for text in texts]


@pytest.fixture(scope="module")
def published_sd3(sd3_folder: Path) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(sd3_folder)


@pytest.fixture(scope="module")
def published_without_t5(sd3_folder: Path) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)


@pytest.fixture(scope="module")
def conditioner(sd3_folder: Path) -> SD3Conditioner:
    return SD3Conditioner.load(sd3_folder)


@pytest.mark.parametrize("tokens", [256, 12])
@pytest.mark.parametrize(("prompt", "negative"), PROMPTS)
def test_prompts(
    conditioner: SD3Conditioner, published_sd3, relative: Relative, prompt: str, negative: str, tokens: int
) -> None:
    expected = encode_published(published_sd3, prompt, negative, tokens)
    positive, other = conditioner.encode_pair(prompt, negative, *SIZE, t5_tokens=tokens)
    assert positive.context.shape == other.context.shape == (CLIP_TOKENS + tokens, T5_WIDTH)
    assert positive.vector.shape == (2 * POOLED,)
    for result, tensor in zip((positive.context, other.context, positive.vector, other.vector), expected, strict=True):
        assert relative(result, tensor) < TOLERANCE
    assert relative(positive.context, expected[1]) > 0.1 and relative(positive.vector, expected[3]) > 0.1


def test_defaults_are_those_of_the_published_pipeline(conditioner: SD3Conditioner, published_sd3, relative) -> None:
    condition = conditioner.encode("a red cat", *SIZE)
    with torch.inference_mode():
        context, _, pooled, _ = published_sd3.encode_prompt("a red cat", None, None, device="cpu")
    assert relative(condition.context, context[0]) < TOLERANCE
    assert relative(condition.vector, pooled[0]) < TOLERANCE


def test_the_order_of_the_towers(conditioner: SD3Conditioner) -> None:
    """The first tower's vectors come first, then the second's, then zeros up to T5's width."""
    first, second = conditioner.text.towers
    condition = conditioner.encode("a red cat", *SIZE)
    with torch.inference_mode():
        (one, pooled), (two, other) = (tower.encode(tower.chunks("a red cat")) for tower in (first, second))
    clip = condition.context[:CLIP_TOKENS]
    assert torch.equal(clip, torch.cat([one, two, torch.zeros(CLIP_TOKENS, T5_WIDTH - CLIP_WIDTH)], dim=1))
    assert torch.equal(condition.vector, torch.cat([pooled, other]))
    assert not torch.equal(condition.vector, torch.cat([other, pooled]))
    assert condition.context[CLIP_TOKENS:, CLIP_WIDTH:].abs().max() > 0.1


def test_t5_reads_its_padding(conditioner: SD3Conditioner, relative: Relative) -> None:
    """So a shorter sequence is another condition, and not the beginning of the longer one."""
    short, long = (conditioner.encode("a red cat", *SIZE, t5_tokens=n).context for n in (12, 256))
    assert torch.equal(short[:CLIP_TOKENS], long[:CLIP_TOKENS])
    assert relative(short[CLIP_TOKENS:], long[CLIP_TOKENS : CLIP_TOKENS + 12]) > 1e-3


def test_without_t5_the_sequence_is_shorter(
    sd3_folder_without_t5: Path, published_without_t5, relative: Relative
) -> None:
    conditioner = SD3Conditioner.load(sd3_folder_without_t5)
    context, _, pooled, _ = encode_published(published_without_t5, "a red cat", "", 256)
    condition = conditioner.encode("a red cat", *SIZE)
    assert condition.context.shape == (CLIP_TOKENS, T5_WIDTH)
    assert relative(condition.context, context[:CLIP_TOKENS]) < TOLERANCE
    assert relative(condition.vector, pooled) < TOLERANCE
    assert not context[CLIP_TOKENS:].any()


@pytest.mark.parametrize("name", ["sd3_folder", "sd3_folder_without_t5"])
def test_zeros_in_place_of_t5_are_what_diffusers_does_without_it(
    name: str, request: pytest.FixtureRequest, published_without_t5, relative: Relative
) -> None:
    conditioner = SD3Conditioner.load(request.getfixturevalue(name), t5="zeros")
    expected = encode_published(published_without_t5, "a red cat", "a dog", 256)
    conditions = conditioner.encode_pair("a red cat", "a dog", *SIZE)
    for condition, context in zip(conditions, expected[:2], strict=True):
        assert condition.context.shape == (CLIP_TOKENS + 256, T5_WIDTH)
        assert relative(condition.context, context) < TOLERANCE


def test_t5_can_be_left_out_of_a_folder_that_has_it(
    sd3_folder: Path, conditioner: SD3Conditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(T5Tower, "load", lambda *_: pytest.fail("T5 was read"))
    dropped = SD3Conditioner.load(sd3_folder, t5="drop").encode("a red cat", *SIZE)
    whole = conditioner.encode("a red cat", *SIZE)
    assert torch.equal(dropped.context, whole.context[:CLIP_TOKENS])
    assert torch.equal(dropped.vector, whole.vector)


def test_t5_cannot_encode_where_there_is_none(sd3_folder_without_t5: Path) -> None:
    with pytest.raises(ValueError, match="t5='encode' needs text_encoder_3"):
        SD3Conditioner.load(sd3_folder_without_t5, t5="encode")


def test_t5_in_fp16_is_refused_and_in_bf16_is_near(
    sd3_folder: Path, conditioner: SD3Conditioner, relative: Relative
) -> None:
    with pytest.raises(ValueError, match="dtype of T5 is torch.float16, expected torch.float32 or torch.bfloat16"):
        SD3Conditioner.load(sd3_folder, t5_dtype=torch.float16)
    narrow = SD3Conditioner.load(sd3_folder, t5_dtype=torch.bfloat16).encode("a red cat", *SIZE, t5_tokens=12)
    expected = conditioner.encode("a red cat", *SIZE, t5_tokens=12)
    assert narrow.context.dtype == torch.float32
    assert torch.equal(narrow.context[:CLIP_TOKENS], expected.context[:CLIP_TOKENS])
    assert 1e-4 < relative(narrow.context[CLIP_TOKENS:], expected.context[CLIP_TOKENS:]) < 0.1


def test_with_t5_in_8_bits_only_its_tokens_are_others_and_near(
    sd3_folder: Path, conditioner: SD3Conditioner, relative: Relative
) -> None:
    rounded = SD3Conditioner.load(sd3_folder, eight_bit_t5=True).encode("a red cat", *SIZE, t5_tokens=12)
    expected = conditioner.encode("a red cat", *SIZE, t5_tokens=12)
    assert torch.equal(rounded.vector, expected.vector)
    assert torch.equal(rounded.context[:CLIP_TOKENS], expected.context[:CLIP_TOKENS])
    assert 1e-3 < relative(rounded.context[CLIP_TOKENS:], expected.context[CLIP_TOKENS:]) < 0.1


@pytest.mark.parametrize("tokens", [0, 513])
def test_t5_tokens_out_of_range(conditioner: SD3Conditioner, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"t5_tokens={tokens} is out of range, expected 1 to 512"):
        conditioner.encode("a red cat", *SIZE, t5_tokens=tokens)


def test_a_context_of_another_width_is_refused(conditioner: SD3Conditioner, sd3_folder: Path, tmp_path: Path) -> None:
    towers = conditioner.text.towers[0], conditioner.text.towers[1]
    with pytest.raises(ValueError, match=f"d_model={T5_WIDTH}, expected the context's {T5_WIDTH + 8}"):
        SD3Conditioner(towers, conditioner.t5, T5_WIDTH + 8, "encode")
    copy = shutil.copytree(sd3_folder, tmp_path / "copy")
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "joint_attention_dim": 60}))
    with pytest.raises(ValueError, match=f"joint_attention_dim=60, expected at least the CLIP towers' {CLIP_WIDTH}"):
        SD3Conditioner.load(copy)


def test_weights_count_for_clip_and_t5_reads_the_words(conditioner: SD3Conditioner, relative: Relative) -> None:
    weighted, plain = (conditioner.encode(text, *SIZE, t5_tokens=12) for text in ("a (red:1.4) cat", "a red cat"))
    parts = [[("a ", 1.0), ("red", 1.4), (" cat", 1.0)]]
    expected = [reference_context(t.tokenizer, t.network.clip, parts, True) for t in conditioner.text.towers]
    assert relative(weighted.context[:CLIP_TOKENS, :CLIP_WIDTH], torch.cat(expected, dim=1)) < 1e-5
    assert relative(weighted.context[:CLIP_TOKENS], plain.context[:CLIP_TOKENS]) > 1e-2
    assert torch.equal(weighted.context[CLIP_TOKENS:], plain.context[CLIP_TOKENS:])
    assert torch.equal(weighted.vector, plain.vector)


def test_a_long_prompt_has_more_clip_chunks_and_the_same_t5_tokens(conditioner: SD3Conditioner) -> None:
    positive, negative = conditioner.encode_pair("a red cat and a dog " * 6, "a dog", *SIZE, t5_tokens=12)
    assert positive.context.shape == negative.context.shape == (3 * CLIP_TOKENS + 12, T5_WIDTH)
    alone = conditioner.encode("a dog", *SIZE, t5_tokens=12).context
    assert torch.equal(negative.context[:CLIP_TOKENS], alone[:CLIP_TOKENS])
    assert torch.equal(negative.context[3 * CLIP_TOKENS :], alone[CLIP_TOKENS:])
