"""Contact sheets and the blind test: what lies where, and how large the files are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.training.sheets import contact_sheet, prompt_sheet, save_png, write_blind

NAMES = tuple(f"thing {letter}" for letter in "abcdefghijkl")
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def test_sheet_is_at_most_2000_pixels_wide() -> None:
    names = [str(i) for i in range(31)]
    cells = noise(31, 3, 64, 64, 3)
    sheet = contact_sheet(names, cells, cells[::-1].copy())
    assert sheet.size == (15 * (128 + 4) + 4, 3 * (3 * 64 + 14 + 4) + 4)
    assert sheet.width <= 2000
    pixels = np.array(sheet)
    assert (pixels[18 : 18 + 64, 4 : 4 + 64] == cells[0, 0]).all()
    assert (pixels[18 : 18 + 64, 68 : 68 + 64] == cells[30, 0]).all()


def test_save_png_uses_fewer_colours_only_when_it_must(tmp_path: Path) -> None:
    picture, path = Image.fromarray(noise(64, 64, 3)), tmp_path / "x.png"
    save_png(picture, path, 20_000)
    with Image.open(path) as read:
        assert (np.array(read) == np.array(picture)).all()
    save_png(picture, path, 4_000)
    assert path.stat().st_size <= 4_000
    with Image.open(path) as read:
        assert read.mode == "P"
    with pytest.raises(ValueError, match="does not fit"):
        save_png(picture, path, 100)


def test_blind_test_keeps_its_answers_apart(tmp_path: Path) -> None:
    asked = np.repeat(np.arange(12), 3)
    write_blind(tmp_path / "b.png", noise(36, 64, 64, 3), asked, NAMES, 20)
    choices = json.loads((tmp_path / "b.choices.json").read_text())
    answers = json.loads((tmp_path / "b.answers.json").read_text())
    assert list(choices) == list(answers) == [str(n) for n in range(1, 21)]
    assert all(len(set(offered)) == 10 and answers[n] in offered for n, offered in choices.items())
    assert len({offered.index(answers[n]) for n, offered in choices.items()}) > 3  # not always in one place
    with Image.open(tmp_path / "b.png") as grid:
        assert grid.size == (10 * 132 + 4, 2 * (128 + 14 + 4) + 4)
    with pytest.raises(ValueError, match="got 9"):
        write_blind(tmp_path / "b.png", noise(9, 8, 8, 3), np.arange(9), NAMES[:9], 5)


def test_prompt_sheet_has_every_picture_beside_its_own_prompt() -> None:
    pictures = noise(6, 64, 64, 3)
    prompts = ["a cat", "two very long words that wrap around", "x", "y", "z", ""]
    pixels = np.array(prompt_sheet(prompts, pictures))
    assert pixels.shape == (2 * 68 + 4, 4 * (64 + 150 + 8) + 4, 3) and pixels.shape[1] <= 2000
    corners = [(4 + i // 4 * 68, 4 + i % 4 * 222) for i in range(6)]
    written = []
    for (y, x), picture in zip(corners, pictures, strict=True):
        assert (pixels[y : y + 64, x : x + 64] == picture).all()
        written.append(int((pixels[y : y + 64, x + 64 : x + 218] != 232).any(-1).sum()))
    assert written[1] > written[0] > written[2] > 0 == written[5]
