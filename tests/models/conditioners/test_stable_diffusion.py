"""Stable Diffusion 1.x and 2.x against ``StableDiffusionPipeline.encode_prompt``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from models.conditioners.stable_diffusion import StableDiffusionConditioner
from tests.support.weighted_prompt import reference_context

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-6
LONG = "a red cat and a dog " * 6


@pytest.fixture(scope="module", params=["sd1_folder", "sd2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def conditioner(folder: Path) -> StableDiffusionConditioner:
    return StableDiffusionConditioner.load(folder)


@pytest.fixture(scope="module")
def published_text(folder: Path) -> Callable[..., tuple[Tensor, Tensor]]:
    """(prompt, negative prompt) -> their contexts from the published pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)

    def encode(prompt: str, negative: str | None) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            positive, negative_context = pipeline.encode_prompt(prompt, "cpu", 1, True, negative)
        return positive[0], negative_context[0]

    return encode


@pytest.mark.parametrize(
    ("prompt", "negative"), [("a red cat", ""), ("", "a dog"), ("A  RED Cat!", "naïve café 7 \N{CAT FACE}")]
)
def test_prompts(
    conditioner: StableDiffusionConditioner, published_text, relative: Relative, prompt: str, negative: str
) -> None:
    expected = published_text(prompt, negative)
    for condition, context in zip(conditioner.encode_pair(prompt, negative, 32, 32), expected, strict=True):
        assert condition.context.shape == (20, 24) and condition.vector.shape == (0,)
        assert condition.concat is None
        assert relative(condition.context, context) < TOLERANCE
    assert relative(*expected) > 0.1


def test_an_empty_negative_prompt_is_an_encoded_one(conditioner: StableDiffusionConditioner, published_text) -> None:
    _, negative = conditioner.encode_pair("a red cat", "", 32, 32)
    _, expected = published_text("a red cat", None)
    torch.testing.assert_close(negative.context, expected, rtol=0, atol=TOLERANCE)
    assert expected.abs().max() > 0.1  # not zeros


def test_the_final_norm_belongs_to_it(conditioner: StableDiffusionConditioner, relative: Relative) -> None:
    """Controls: the last layer without its norm, and one layer less with it."""
    context = conditioner.encode("a red cat", 32, 32).context
    (tower,) = conditioner.text.towers
    with torch.inference_mode():
        output = tower.network.clip(tower.tokenize(["a red cat"]), output_hidden_states=True)
        normed = tower.network.clip.final_layer_norm(output.hidden_states[-2])
    assert relative(context, output.last_hidden_state[0]) == 0.0
    assert relative(context, output.hidden_states[-1][0]) > 0.1
    assert relative(context, normed[0]) > 0.1


def test_a_long_prompt_begins_as_the_published_one_and_goes_on(
    conditioner: StableDiffusionConditioner, published_text, relative: Relative
) -> None:
    positive, negative = conditioner.encode_pair(LONG, "a dog", 32, 32)
    assert positive.context.shape == negative.context.shape == (60, 24)
    expected, expected_negative = published_text(LONG, "a dog")
    assert relative(positive.context[:20], expected) < TOLERANCE
    assert relative(negative.context[:20], expected_negative) < TOLERANCE
    assert torch.equal(negative.context[20:], conditioner.encode("", 32, 32).context.repeat(2, 1))
    assert relative(positive.context[20:], negative.context[20:]) > 0.1


def test_weights(conditioner: StableDiffusionConditioner, relative: Relative) -> None:
    (tower,) = conditioner.text.towers
    parts = [[("a ", 1.0), ("red", 1.4), (" cat", 1.0)]]
    expected = reference_context(tower.tokenizer, tower.network.clip, parts, penultimate=False)
    assert relative(conditioner.encode("a (red:1.4) cat", 32, 32).context, expected) < 1e-5
    assert relative(conditioner.encode("a red cat", 32, 32).context, expected) > 1e-2
