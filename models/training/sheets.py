"""Pictures of pictures: the contact sheets of a model's card, and a blind test."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP, LABEL, TEXT = 4, 14, 150  # pixels between pictures, for a line of text, and for a column of it
GREY = (232, 232, 232)


def contact_sheet(
    names: Sequence[str], samples: NDArray[np.uint8], nearest: NDArray[np.uint8], per_block: int = 15
) -> Image.Image:
    """Each concept a pair of columns, the sample and its nearest training drawing, and each style a row.

    Both arrays are uint8 [C, S, H, W, 3]; after per_block concepts a new block of rows begins.
    """
    pairs = np.concatenate([samples, nearest], axis=3)  # side by side
    concepts, styles, height, width = pairs.shape[:4]
    columns, blocks = min(per_block, concepts), -(-concepts // per_block)
    step_x, step_y = width + GAP, styles * height + LABEL + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, blocks * step_y + GAP), GREY)
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        x, y = GAP + i % per_block * step_x, GAP + i // per_block * step_y
        draw.text((x, y), name, "black", ImageFont.load_default(11))
        sheet.paste(Image.fromarray(np.concatenate(pairs[i])), (x, y + LABEL))
    return sheet


def prompt_sheet(prompts: Sequence[str], pictures: NDArray[np.uint8], columns: int = 4) -> Image.Image:
    """Pictures uint8 [N, H, W, 3] in a grid, each with its prompt to the right of it."""
    height, width = pictures.shape[1:3]
    step_x, step_y = width + TEXT + 2 * GAP, height + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, -(-len(prompts) // columns) * step_y + GAP), GREY)
    draw = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x, y = GAP + i % columns * step_x, GAP + i // columns * step_y
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.text((x + width + GAP, y), "\n".join(textwrap.wrap(prompt, 24)), "black", ImageFont.load_default(11))
    return sheet


def save_png(image: Image.Image, path: Path, most_bytes: int) -> None:
    """Write a PNG of at most most_bytes, with as many colours as fit. Raises ValueError when 16 are too many."""
    for colours in (0, 256, 128, 64, 32, 16):
        buffer = io.BytesIO()
        (image.quantize(colours, dither=Image.Dither.NONE) if colours else image).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= most_bytes:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"{path} does not fit in {most_bytes} bytes")


def blind_grid(pictures: NDArray[np.uint8], columns: int = 10, scale: int = 2) -> Image.Image:
    """Pictures uint8 [N, H, W, 3], enlarged, in a grid with nothing but their numbers, which begin at 1."""
    side = pictures.shape[1] * scale
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (side + GAP) + GAP, rows * (side + LABEL + GAP) + GAP), GREY)
    draw = ImageDraw.Draw(grid)
    for i, picture in enumerate(pictures):
        x, y = GAP + i % columns * (side + GAP), GAP + i // columns * (side + LABEL + GAP)
        draw.text((x, y), str(i + 1), "black", ImageFont.load_default(11))
        grid.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (x, y + LABEL))
    return grid


def write_blind(
    path: Path,
    pictures: NDArray[np.uint8],
    asked: NDArray[np.int64],
    names: Sequence[str],
    count: int,
    seed: int = 0,
) -> None:
    """A test for someone who has not seen the prompts: path (.png), and beside it .choices.json and .answers.json.

    asked [N] says which of names each picture should be. Raises ValueError with fewer than ten names.
    """
    if len(names) < 10:
        raise ValueError(f"a ten-way choice needs ten names, got {len(names)}")
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(pictures))[:count]
    choices, answers = {}, {}
    for number, i in enumerate(picked, 1):
        right = int(asked[i])
        others = rng.permutation([k for k in range(len(names)) if k != right])[:9]
        choices[number] = [names[k] for k in rng.permutation([right, *others])]
        answers[number] = names[right]
    path.parent.mkdir(parents=True, exist_ok=True)
    blind_grid(pictures[picked]).save(path)
    path.with_suffix(".choices.json").write_text(json.dumps(choices, indent=1) + "\n")
    path.with_suffix(".answers.json").write_text(json.dumps(answers, indent=1) + "\n")
