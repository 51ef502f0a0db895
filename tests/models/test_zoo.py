"""The shipped model: a published-format folder that draws what it is told, the same in diffusers as here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.families import image_to_video, text_to_image
from models.families.row import advance
from models.families.text_to_image import TextToImageModel
from models.guidance import Guidance
from models.plan import make_plan
from models.weights import load_unet

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "models" / "zoo"
FOLDER = ZOO / "emoji-xl"
MAX_UNET_PARAMETERS = 8_300_000


@pytest.fixture(scope="module")
def model() -> TextToImageModel:
    return text_to_image.load(FOLDER)


def draw(model: TextToImageModel, prompts: list[str], steps: int = 12, solver: str = "ddim") -> NDArray[np.uint8]:
    """uint8 [N, 64, 64, 3], all in one batch, picture i with seed i."""
    spec = model.spec
    width, height = spec.sizes[0]
    plan = make_plan(model.schedule, solver, steps, Guidance(spec.guidance))
    rows = [
        text_to_image.start_row(
            model, plan, text_to_image.prepare(model, prompt, "", True, width, height), seed, (width, height)
        )
        for seed, prompt in enumerate(prompts)
    ]
    while not rows[0].finished:
        advance(model.denoisers, rows)
    return text_to_image.decode(model.decoder, rows)


def mean_colour(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean colour of what is not background: [3]."""
    pixels = picture.reshape(-1, 3).astype(float)
    return np.asarray(pixels[pixels.min(axis=1) < 200].mean(axis=0))


def test_every_file_fits_and_the_unet_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 16 * 2**20
    assert sum(p.numel() for p in load_unet(FOLDER).parameters()) <= MAX_UNET_PARAMETERS


def test_the_whole_zoo_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in ZOO.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 72 * 2**20
    assert max(sizes.values()) < 16 * 2**20


def test_the_history_stays_small() -> None:
    """All blobs that were ever committed: weights that are replaced stay in everyone's clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = git("rev-list", "--objects", "--all")
    names = "\n".join(line.split()[0] for line in listed.splitlines())
    described = git("cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=names)
    blobs = [int(line.split()[1]) for line in described.splitlines() if line.startswith("blob")]
    assert blobs and sum(blobs) <= 240 * 2**20


def git(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


def test_both_tokenizers_are_the_same_bytes() -> None:
    first, second = (
        {path.name: path.read_bytes() for path in (FOLDER / name).iterdir()} for name in ("tokenizer", "tokenizer_2")
    )
    assert first == second


@pytest.mark.parametrize("style", ["3d", "noto", "twemoji"])
def test_prompts_decide_the_colours(model: TextToImageModel, style: str) -> None:
    things = {"red apple": 0, "red heart": 0, "green apple": 1, "four leaf clover": 1, "blue heart": 2, "water drop": 2}
    pictures = draw(model, [f"{thing} {style}" for thing in things])
    strongest = [int(mean_colour(picture).argmax()) for picture in pictures]
    assert strongest == list(things.values())


def test_the_background_is_white(model: TextToImageModel) -> None:
    pictures = draw(model, ["red apple 3d", "sun noto", "rocket 3d", "key twemoji"])
    corners = pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
    assert np.median(corners) >= 0.97 * 255


def test_the_style_word_is_obeyed(model: TextToImageModel) -> None:
    first, second, third = draw(model, ["house 3d", "house noto", "house twemoji"]).astype(float)
    assert min(abs(first - second).mean(), abs(second - third).mean(), abs(first - third).mean()) > 10


def test_diffusers_draws_the_same(model: TextToImageModel) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(FOLDER, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)

    def theirs(prompt: str) -> NDArray[np.uint8]:
        images = pipeline(
            prompt,
            num_inference_steps=6,
            guidance_scale=model.spec.guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            width=64,
            height=64,
        ).images
        return np.asarray((images[0] * 255).round().astype(np.uint8))

    (ours,) = draw(model, ["cat 3d"], steps=6).astype(int)
    assert abs(ours - theirs("cat 3d").astype(int)).max() <= 2
    assert abs(ours - theirs("pizza 3d").astype(int)).mean() > 10


def test_the_card_tells_what_was_measured() -> None:
    figures = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures and "## " in card and "samples.png" in card
    assert (ZOO / "NOTICE").is_file()


@pytest.fixture(scope="module")
def picture(model: TextToImageModel) -> NDArray[np.uint8]:
    """What emoji-xl draws: uint8 [64, 64, 3]."""
    first: NDArray[np.uint8] = draw(model, ["rocket noto"])[0]
    return first


def animate(picture: NDArray[np.uint8], bucket: int, steps: int) -> NDArray[np.uint8]:
    video = image_to_video.load(ZOO / "emoji-svd")
    plan = make_plan(video.schedule, video.spec.solver, steps, image_to_video.guidance(video))
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1.0
    row = image_to_video.start_row(video, plan, pixels, image_to_video.Motion(bucket=bucket), 5)
    while not row.finished:
        advance(video.denoisers, [row])
    return image_to_video.decode(video, row)


def test_a_clip_begins_with_its_picture_and_moves_as_asked(picture: NDArray[np.uint8]) -> None:
    still, moving = (animate(picture, bucket, steps=8) / 255.0 for bucket in (0, 127))
    assert still.shape == (8, 64, 64, 3)
    # What the autoencoder loses is part of it.
    assert max(abs(clip[0] - picture / 255.0).mean() for clip in (still, moving)) < 0.05
    assert abs(np.diff(still, axis=0)).mean() < 0.01
    assert abs(np.diff(moving, axis=0)).mean() > 2 * abs(np.diff(still, axis=0)).mean()


def test_diffusers_makes_the_same_clip(picture: NDArray[np.uint8]) -> None:
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(ZOO / "emoji-svd")
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        Image.fromarray(picture),
        width=64,
        height=64,
        num_inference_steps=4,
        max_guidance_scale=2.0,
        motion_bucket_id=127,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        decode_chunk_size=8,
    ).frames[0]
    theirs = (np.asarray(frames) * 255).round().astype(int)
    assert abs(animate(picture, 127, steps=4).astype(int) - theirs).max() <= 2
    assert abs(animate(picture, 0, steps=4).astype(int) - theirs).mean() > 1
