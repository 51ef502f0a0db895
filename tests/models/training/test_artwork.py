"""The artwork pipeline on a tiny package made on the spot: no network, no npm."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.training import artwork
from models.training.artwork import KEYWORDS, UNICODE, Package, composite, download, render
from models.training.emoji_svd import PACKAGES

TINY = Package("@tiny/icons", "1.0.0", "MIT", "tiny")
HALF_RED = '<rect width="8" height="16" fill="#f00" fill-opacity="0.5"/>'  # the left half, half transparent
EMOJI = {
    "🍎": {"name": "red apple", "group": "Food & Drink"},
    "🚗": {"name": "automobile", "group": "Travel & Places"},
    "🐱": {"name": "cat face", "group": "Animals & Nature"},
    "🦄": {"name": "unicorn", "group": "Animals & Nature"},
    "🏁": {"name": "chequered flag", "group": "Flags"},
}
ICONS = {
    "icons": {
        "red-apple": {"body": HALF_RED},
        "motor": {"body": '<rect width="16" height="16" fill="#00f"/>'},
        "catface": {"body": '<rect width="16" height="8" fill="#0f0"/>', "height": 8},
        "chequered-flag": {"body": HALF_RED},
    },
    "width": 16,
    "height": 16,
}


def pack(folder: Path, package: Package, files: dict[str, Any]) -> None:
    with tarfile.open(folder / package.tarball, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(tmp_path, UNICODE, {"data-by-emoji.json": EMOJI})
    pack(tmp_path, KEYWORDS, {"dist/emoji-en-US.json": {"🍎": ["red_apple", "fruit", ":)"]}})
    pack(tmp_path, TINY, {"icons.json": ICONS, "chars.json": {"1f697": "motor"}})
    return tmp_path


def make(folder: Path) -> artwork.Drawings:
    lock = folder / "lock.json"
    download(folder, (UNICODE, KEYWORDS, TINY), lock)
    return render(folder, 16, (TINY,), lock)


def test_render_matches_by_slug_code_point_and_plain_name(folder: Path) -> None:
    drawings = make(folder)
    assert [drawings.slugs[i] for i in drawings.concept] == ["red-apple", "automobile", "cat-face"]
    assert drawings.styles == ("tiny",)
    assert drawings.keywords[0] == ("red apple", "fruit")
    assert "chequered-flag" not in drawings.slugs


def test_pixels_are_premultiplied_and_centred(folder: Path) -> None:
    apple, car, cat = make(folder).pixels
    np.testing.assert_allclose(apple[8, 2], [128, 0, 0, 128], atol=1)
    assert apple[8, 12].tolist() == [0, 0, 0, 0]
    assert car[0, 0].tolist() == [0, 0, 255, 255]
    assert (cat[:, 8, 3] > 0).tolist() == [False] * 4 + [True] * 8 + [False] * 4


def test_on_background_shows_the_background_through(folder: Path) -> None:
    picture = make(folder).on_background((0, 0, 200))[0]
    np.testing.assert_allclose(picture[8, 2], [128, 0, 100], atol=1)
    assert picture[8, 12].tolist() == [0, 0, 200]


def test_composite_of_an_opaque_picture_ignores_the_background() -> None:
    pixels = np.full((1, 2, 2, 4), 255, np.uint8)
    assert (composite(pixels, np.zeros(3, np.uint8)) == 255).all()


def test_render_is_read_back_from_its_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(folder)
    monkeypatch.setattr(artwork, "svg_finder", lambda *_: pytest.fail("rendered again"))
    again = make(folder)
    assert (first.pixels == again.pixels).all()
    assert first.keywords == again.keywords


def test_select_keeps_the_tables(folder: Path) -> None:
    cat = make(folder).select(["cat-face"], ["tiny"])
    assert len(cat) == 1
    assert cat.slugs[cat.concept[0]] == "cat-face"
    with pytest.raises(ValueError, match="dragon"):
        cat.select(["dragon"])


def test_download_refuses_a_changed_tarball(folder: Path) -> None:
    lock = folder / "lock.json"
    lock.write_text(json.dumps({TINY.tarball: hashlib.sha256(b"other").hexdigest()}))
    with pytest.raises(RuntimeError, match=r"tiny-icons-1\.0\.0\.tgz"):
        download(folder, (TINY,), lock)


def test_download_runs_npm_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def npm(command: list[str], cwd: Path, **_: Any) -> None:
        assert command == ["npm", "pack", "--silent", "@tiny/icons@1.0.0"]
        pack(cwd, TINY, {"icons.json": ICONS})

    monkeypatch.setattr(subprocess, "run", npm)
    download(tmp_path, (TINY,), tmp_path / "lock.json")
    assert list(json.loads((tmp_path / "lock.json").read_text())) == ["tiny-icons-1.0.0.tgz"]


def test_download_says_that_npm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm is not installed"):
        download(tmp_path, (TINY,), tmp_path / "lock.json")


def test_render_asks_for_the_download_first(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="download"):
        render(tmp_path, 16, (TINY,), tmp_path / "lock.json")
    with pytest.raises(ValueError, match="48"):
        render(tmp_path, 48)


def test_the_lock_lists_every_package() -> None:
    assert set(json.loads(artwork.LOCK.read_text())) == {package.tarball for package in PACKAGES}
