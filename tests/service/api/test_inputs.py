"""Pictures that clients send: what they become, and what is refused before it costs anything."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.api import inputs
from service.api.inputs import MAX_PIXELS, Kept, keep_inputs, nearest_proportions
from service.errors import InvalidRequest
from service.jobs.artifacts import ArtifactStore

SIZES = ((64, 64), (64, 32), (32, 64))


def nearest(size: tuple[int, int]) -> tuple[int, int]:
    return nearest_proportions(size, SIZES)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(size: tuple[int, int] = (100, 100), mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image.convert(mode)


def pixels(artifacts: ArtifactStore, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(artifacts.open(name))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def kept_picture(artifacts: ArtifactStore, content: bytes) -> np.ndarray:
    return pixels(artifacts, keep_inputs(artifacts, content, None, lambda _: (64, 64)).image)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_it_becomes_a_png_of_the_size(artifacts: ArtifactStore, kind: str) -> None:
    found = kept_picture(artifacts, encoded(halves(), kind))
    assert found.shape == (64, 64, 3)
    assert np.allclose(found[:, :28].mean((0, 1)), (255, 0, 0), atol=12)
    assert np.allclose(found[:, 36:].mean((0, 1)), (0, 0, 255), atol=12)


def test_the_same_content_is_the_same_artifact(artifacts: ArtifactStore) -> None:
    first, second = (keep_inputs(artifacts, encoded(halves()), None, nearest) for _ in range(2))
    assert first == second == Kept(first.image, None, (64, 64))


def test_the_size_follows_the_proportions(artifacts: ArtifactStore) -> None:
    for size, expected in (((300, 140), (64, 32)), ((100, 90), (64, 64)), ((10, 19), (32, 64))):
        kept = keep_inputs(artifacts, encoded(halves(size)), None, nearest)
        assert kept.size == expected == nearest(size)
        assert pixels(artifacts, kept.image).shape[:2] == expected[::-1]


def test_at_its_own_size_it_is_kept_as_it_is(artifacts: ArtifactStore) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (35, 51, 3), np.uint8)
    kept = keep_inputs(artifacts, encoded(Image.fromarray(noise)), None, lambda size: size)
    assert kept.size == (51, 35) and np.array_equal(pixels(artifacts, kept.image), noise)


def test_it_is_cut_and_not_stretched(artifacts: ArtifactStore) -> None:
    picture = Image.new("RGB", (300, 100), "white")
    picture.paste("black", (100, 0, 200, 100))
    assert kept_picture(artifacts, encoded(picture)).max() < 128, "the middle square is black"


def test_it_is_turned_as_the_camera_says(artifacts: ArtifactStore) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what was left is up
    found = kept_picture(artifacts, encoded(halves(), "jpeg", exif=exif))
    assert np.allclose(found[:28].mean((0, 1)), (255, 0, 0), atol=12)
    plain = kept_picture(artifacts, encoded(halves(), "jpeg"))
    assert not np.allclose(plain[:28].mean((0, 1)), (255, 0, 0), atol=12)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixels(artifacts: ArtifactStore, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((100, 100), 32768, np.uint16))
    else:
        image = Image.new("L", (100, 100), 128).convert("RGB").convert(mode)
    found = kept_picture(artifacts, encoded(image, "jpeg" if mode == "CMYK" else "png"))
    assert found.shape == (64, 64, 3) and abs(found.mean() - 128) < 6


def test_what_is_transparent_is_white(artifacts: ArtifactStore) -> None:
    image = halves(mode="RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 50, 100))
    assert (kept_picture(artifacts, encoded(image))[:, :28] == 255).all()


def test_masks(artifacts: ArtifactStore) -> None:
    transparent = Image.new("RGBA", (100, 100), (0, 0, 0, 255))
    transparent.paste((0, 0, 0, 0), (0, 0, 50, 100))
    white = Image.new("L", (100, 100), 0)
    white.paste(255, (0, 0, 50, 100))
    for mask in (transparent, white, white.convert("RGBA"), white.convert("RGB")):
        kept = keep_inputs(artifacts, encoded(halves()), encoded(mask), lambda _: (64, 64))
        assert kept.mask is not None
        found = pixels(artifacts, kept.mask)
        assert found.shape == (64, 64) and (found[:, :31] == 255).all() and (found[:, 33:] == 0).all()


def test_masks_that_do_not_fit(artifacts: ArtifactStore) -> None:
    for mask, said in ((Image.new("L", (99, 100), 255), "99x100"), (Image.new("L", (100, 100), 0), "nothing to paint")):
        with pytest.raises(InvalidRequest, match=said) as caught:
            keep_inputs(artifacts, encoded(halves()), encoded(mask), nearest)
        assert caught.value.param == "mask"


def png_of(width: int, height: int) -> bytes:
    """A small file that says it is large: rows of one colour compress a thousandfold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A text chunk of 100 MB in a file of 100 kB."""
    content = encoded(Image.new("L", (8, 8)))
    data = b"comment\0\0" + zlib.compress(bytes(100_000_000), 1)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return content[:33] + chunk + content[33:]


BOMBS = {
    "just over": png_of(8000, 5001),
    "where Pillow warns": png_of(12_000, 9_000),
    "where Pillow refuses": png_of(60_000, 60_000),
    "gigantic": png_of(2**31 - 1, 2**31 - 1),
    "a line": png_of(4000, 10),
    "nothing": b"",
    "text": b"not a picture",
    "a program": b"\x7fELF" + bytes(1000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "bmp": encoded(Image.new("RGB", (8, 8)), "bmp"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "cut off": encoded(halves())[:-40],
    "a head alone": encoded(halves(), "jpeg")[:200],
    "a comment": text_bomb(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(artifacts: ArtifactStore, name: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest) as caught:
        keep_inputs(artifacts, BOMBS[name], None, nearest)
    assert caught.value.param == "image" and time.process_time() - began < 1.0
    assert list(artifacts.list()) == []


def test_the_limit_itself_is_no_bomb(artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_PIXELS", 10_000)
    assert kept_picture(artifacts, encoded(halves())).shape == (64, 64, 3)
    with pytest.raises(InvalidRequest, match="101x100 pixels; the limit is 10000"):
        kept_picture(artifacts, encoded(halves((101, 100))))
    assert MAX_PIXELS >= 24_000_000, "a telephone's picture"


def test_any_bytes_are_answered(artifacts: ArtifactStore) -> None:
    """Files that begin well and go on wrongly."""
    random = np.random.default_rng(0)
    good = [encoded(halves((20, 20)), kind) for kind in ("png", "jpeg", "webp", "gif")]
    refused = 0
    for number in range(400):
        content = bytearray(good[number % 4])
        for place in random.integers(8, len(content), 4):
            content[place] = random.integers(256)
        try:
            keep_inputs(artifacts, bytes(content), None, nearest)
        except InvalidRequest:
            refused += 1
    assert 20 < refused < 400
