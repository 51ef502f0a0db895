"""Pictures to bytes and back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.jobs.job import Adapter, ImageToImage, TextToImage
from service.worker.media import MEDIA_TYPES, encode_picture, encode_preview
from tests.support.rig import make_upscaling

REQUEST = TextToImage(
    model="tiny",
    prompt='a café \U0001f600 "quoted"',
    negative_prompt="grey",
    width=24,
    height=16,
    num_inference_steps=7,
    guidance_scale=3.5,
    scheduler="dpm++2m",
    seed=5,
)


PICTURES = [name for name in MEDIA_TYPES if name != "mp4"]


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def smooth() -> NDArray[np.uint8]:
    """What lossy formats are made for."""
    rows, columns = np.mgrid[0:16, 0:24]
    return np.stack([rows * 10, columns * 8, rows * 5 + columns * 3], axis=-1).astype(np.uint8)


def decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def origin(content: bytes) -> dict[str, Any]:
    image = decoded(content)
    if image.format == "PNG":
        text = image.text["parameters"]  # type: ignore[attr-defined]
    else:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"ASCII\0\0\0")
        text = comment[8:].decode("ascii")
    found: dict[str, Any] = json.loads(text)
    return found


def test_png_keeps_every_pixel() -> None:
    image = decoded(encode_picture(picture(), REQUEST, 5))
    assert image.mode == "RGB" and image.size == (24, 16)
    assert np.array_equal(np.asarray(image), picture())
    assert not np.array_equal(np.asarray(image), picture(1))


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_lossy_formats_come_close_and_quality_matters(name: str) -> None:
    sizes = []
    for quality, far in [(100, 6), (5, 60)]:
        request = REQUEST.model_copy(update={"output_format": name, "output_compression": quality})
        content = encode_picture(smooth(), request, 5)
        difference = np.asarray(decoded(content), dtype=int) - smooth()
        assert np.abs(difference).mean() < far
        sizes.append(len(content))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("name", PICTURES)
def test_the_file_is_of_the_type_that_it_is_served_as(name: str) -> None:
    content = encode_picture(picture(), REQUEST.model_copy(update={"output_format": name}), 5)
    assert Image.MIME[decoded(content).format or ""] == MEDIA_TYPES[name]


@pytest.mark.parametrize("name", PICTURES)
def test_what_made_it_is_written_inside(name: str) -> None:
    content = encode_picture(picture(), REQUEST.model_copy(update={"output_format": name}), 12)
    assert origin(content) == {
        "software": "darkroom",
        "model": "tiny",
        "prompt": REQUEST.prompt,
        "negative_prompt": "grey",
        "seed": 12,
        "num_inference_steps": 7,
        "guidance_scale": 3.5,
        "scheduler": "dpm++2m",
    }


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_written_inside_where_that_is_off(name: str) -> None:
    request = REQUEST.model_copy(update={"output_format": name})
    told, silent = (
        encode_picture(picture(), request.model_copy(update={"metadata": metadata}), 12) for metadata in (True, False)
    )
    assert b"darkroom" in told and b"darkroom" not in silent
    assert decoded(told).tobytes() == decoded(silent).tobytes()


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_picture_has_the_same_bytes(name: str) -> None:
    request = REQUEST.model_copy(update={"output_format": name})
    first = encode_picture(picture(), request, 5)
    assert encode_picture(picture(), request, 5) == first
    assert encode_picture(picture(1), request, 5) != first
    assert encode_picture(picture(), request, 6) != first


def test_what_a_task_adds_is_written_too() -> None:
    same = REQUEST.model_dump(exclude={"task", "loras"})
    request = ImageToImage(**same, image="0" * 64, strength=0.5, loras=(Adapter(name="ink", scale=0.7),))
    about = origin(encode_picture(picture(), request, 5))
    assert about["strength"] == 0.5 and about["loras"] == [{"name": "ink", "scale": 0.7}]
    enlarged = origin(encode_picture(picture(), make_upscaling(noise_level=7), 5))
    assert enlarged["noise_level"] == 7 and "strength" not in enlarged and "noise_level" not in about


@pytest.mark.parametrize("name", PICTURES)
def test_a_preview_has_the_size_and_format_of_the_picture(name: str) -> None:
    small = np.full((2, 3, 3), 90, np.uint8)
    image = decoded(encode_preview(small, REQUEST.model_copy(update={"output_format": name})))
    assert image.size == (24, 16) and Image.MIME[image.format or ""] == MEDIA_TYPES[name]
    assert np.abs(np.asarray(image.convert("RGB"), dtype=int) - 90).max() < 4
