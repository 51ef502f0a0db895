"""The shipped student of distillation: what it shares with its teacher, and what it draws in one step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.families import text_to_image
from models.families.row import advance
from models.families.text_to_image import TextToImageModel
from models.guidance import Guidance
from models.plan import make_plan
from models.training.emoji_xl_turbo import SHARED

ZOO = Path(__file__).resolve().parents[2] / "models" / "zoo"
FOLDER = ZOO / "emoji-xl-turbo"


@pytest.fixture(scope="module")
def model() -> TextToImageModel:
    return text_to_image.load(FOLDER)


def draw(model: TextToImageModel, prompts: list[str], steps: int) -> NDArray[np.uint8]:
    """uint8 [N, 64, 64, 3], all in one batch, picture i with seed i."""
    plan = make_plan(model.schedule, model.spec.solver, steps, Guidance(model.spec.guidance))
    rows = [
        text_to_image.start_row(model, plan, text_to_image.prepare(model, prompt, "", False, 64, 64), seed, (64, 64))
        for seed, prompt in enumerate(prompts)
    ]
    while not rows[0].finished:
        advance(model.denoisers, rows)
    return text_to_image.decode(model.decoder, rows)


def test_it_shares_its_teachers_parts_byte_by_byte() -> None:
    for part in SHARED:
        ours, teachers = (
            {path.name: path.read_bytes() for path in sorted((ZOO / name / part).iterdir())}
            for name in ("emoji-xl-turbo", "emoji-xl")
        )
        assert ours == teachers


def test_one_step_without_guidance_is_its_default(model: TextToImageModel) -> None:
    assert (model.spec.steps, model.spec.guidance, model.spec.max_guidance) == (1, 1.0, 1.0)


@pytest.mark.parametrize("steps", [1, 4])
def test_prompts_decide_the_colours(model: TextToImageModel, steps: int) -> None:
    things = {"red apple 3d": 0, "red heart noto": 0, "green apple 3d": 1, "shamrock twemoji": 1, "blue heart noto": 2}
    pictures = draw(model, list(things), steps).astype(float)
    means = [picture[picture.min(axis=-1) < 200].mean(axis=0) for picture in pictures]
    assert [int(mean.argmax()) for mean in means] == list(things.values())


def test_places_and_backgrounds_are_obeyed(model: TextToImageModel) -> None:
    left, right = draw(model, [f"a small apple on the {side} on a blue background 3d" for side in ("left", "right")], 1)
    for picture, half in ((left, slice(0, 32)), (right, slice(32, 64))):
        red = picture[..., 0].astype(float) - picture[..., 2]
        assert red[:, half].max() > 80 > red.min()
        assert red[:, half].clip(0).sum() > 5 * (red.clip(0).sum() - red[:, half].clip(0).sum())


@pytest.mark.parametrize("steps", [1, 4])
def test_diffusers_draws_the_same(model: TextToImageModel, steps: int) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(FOLDER, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        "tiger 3d",
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        width=64,
        height=64,
    ).images[0]
    theirs = np.asarray((made * 255).round().astype(int))
    assert abs(draw(model, ["tiger 3d"], steps)[0].astype(int) - theirs).max() <= 2
    assert abs(draw(model, ["pizza 3d"], steps)[0].astype(int) - theirs).mean() > 10


def test_the_card_tells_what_was_measured() -> None:
    figures = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["training"]["distillation, learn"] and figures["other_steps"]
    assert "in 4 steps" in (FOLDER / "README.md").read_text(encoding="utf-8")
