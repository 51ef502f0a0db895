"""Reading animated files: every second frame, premultiplied, without skin tones and single pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.training.animations import frames_of, render_animations
from models.training.artwork import Package

PACK = Package("@tiny/anim", "1.0.0", "MIT")
LEVELS = (250, 200, 150, 100, 50)


def webp(levels: tuple[int, ...]) -> bytes:
    """One frame of half-transparent red for each level."""
    frames = [Image.new("RGBA", (32, 32), (level, 0, 0, 128)) for level in levels]
    buffer = io.BytesIO()
    frames[0].save(buffer, "webp", save_all=True, append_images=frames[1:], duration=42, lossless=True)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"1f600": webp(LEVELS), "1f44b": webp(LEVELS[:3]), "1f44b-1f3fd": webp(LEVELS), "1f6d1": webp(LEVELS[:1])}
    with tarfile.open(tmp_path / PACK.tarball, "w:gz") as tar:
        for code, data in files.items():
            member = tarfile.TarInfo(f"package/assets/{code}.webp")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "lock.json").write_text(json.dumps({PACK.tarball: "ab"}))
    return tmp_path


def test_loops_are_read_and_kept(folder: Path) -> None:
    read = render_animations(folder, 16, (PACK,), folder / "lock.json")
    assert read.codes == ("1f600", "1f44b")  # neither a skin tone nor what never moves
    assert [len(read.loop(i)) for i in range(len(read))] == [3, 2]
    assert read.loop(0).shape == (3, 16, 16, 4)
    (folder / PACK.tarball).write_bytes(b"no longer read")
    again = render_animations(folder, 16, (PACK,), folder / "lock.json")
    assert np.array_equal(again.frames, read.frames) and again.codes == read.codes


def test_every_second_frame_premultiplied() -> None:
    reds = frames_of(webp(LEVELS), 16)[:, 8, 8, 0].astype(float)
    assert reds == pytest.approx([level * 128 / 255 for level in LEVELS[::2]], abs=3)


def test_a_missing_package_is_named(folder: Path) -> None:
    other = Package("@tiny/other", "1.0.0", "MIT")
    with pytest.raises(RuntimeError, match="tiny-other"):
        render_animations(folder, 16, (other,), folder / "lock.json")
