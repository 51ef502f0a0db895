"""Clips to bytes and back."""

from __future__ import annotations

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.worker import video
from service.worker.video import CODECS, encode_clip, encode_mp4, encoder
from tests.support.rig import make_clip

THERE = [name for name in CODECS if name in av.codecs_available]
REQUEST = make_clip("0" * 64, fps=9, prompt="a café", motion_bucket_id=80)


def a_clip(count: int = 7) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:48, 0:64]
    frames = [np.stack([rows * 3 + 12 * t, columns * 3, rows + columns + 12 * t], -1) for t in range(count)]
    return np.stack(frames).astype(np.uint8)


def decoded(content: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("codec", THERE)
def test_every_encoder_that_is_there(codec: str) -> None:
    content = encode_mp4(a_clip(), 9, 95, "{}", codec)
    frames = decoded(content)
    assert frames.shape == a_clip().shape
    assert np.abs(frames.astype(int) - a_clip()).mean() < 6 < np.abs(frames[::-1].astype(int) - a_clip()).mean()
    assert encode_mp4(a_clip(), 9, 95, "{}", codec) == content, "the same clip has the same bytes"
    assert len(encode_mp4(a_clip(), 9, 10, "{}", codec)) < len(content)


def test_clips_that_are_encoded_at_once_have_their_own_bytes() -> None:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:64, 0:64]
    frames = [np.stack([columns * 3 + t * 5, rows * 2 + t * 9, rows + columns + t * 3], -1) % 256 for t in range(8)]
    clip = np.clip(np.stack(frames) + random.integers(-3, 3, (8, 64, 64, 3)), 0, 255).astype(np.uint8)
    with ThreadPoolExecutor(4) as pool:  # some 3 % of the clips differ with the options of x264 alone
        assert len(set(pool.map(lambda _: encode_mp4(clip, 7, 100, "x", THERE[0]), range(200)))) == 1


def test_the_file() -> None:
    clip = encode_clip(a_clip(), REQUEST, 12)
    assert clip.content.index(b"moov") < clip.content.index(b"mdat"), "it plays before all of it has arrived"
    with av.open(io.BytesIO(clip.content)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 9 and stream.frames == 7 and (stream.width, stream.height) == (64, 48)
        about = json.loads(container.metadata["comment"])
    assert about["prompt"] == "a café" and about["seed"] == 12 and about["motion_bucket_id"] == 80


def test_the_file_says_nothing_where_that_is_off() -> None:
    assert b"a caf" not in encode_clip(a_clip(), REQUEST.model_copy(update={"metadata": False}), 12).content


def test_what_stands_for_it() -> None:
    variants = encode_clip(a_clip(), REQUEST, 12).variants
    assert variants["thumbnail"][1] == "image/webp" and variants["spritesheet"][1] == "image/jpeg"
    small = np.asarray(Image.open(io.BytesIO(variants["thumbnail"][0])).convert("RGB"), dtype=int)
    assert small.shape == (48, 64, 3) and np.abs(small - a_clip()[0]).mean() < 6
    sheet = np.asarray(Image.open(io.BytesIO(variants["spritesheet"][0])), dtype=int)
    assert sheet.shape == (2 * 48, 5 * 64, 3)
    assert np.abs(sheet[48:, 64:128] - a_clip()[6]).mean() < 6 and sheet[48:, 128:].max() < 30


def test_large_frames_stand_for_it_in_small() -> None:
    large = np.zeros((2, 300, 600, 3), np.uint8)
    variants = encode_clip(large, REQUEST, 1).variants
    assert Image.open(io.BytesIO(variants["thumbnail"][0])).size == (256, 128)
    assert Image.open(io.BytesIO(variants["spritesheet"][0])).size == (2 * 192, 96)


def test_odd_sides_lose_a_line() -> None:
    assert decoded(encode_mp4(a_clip()[:, :47, :63], 7, 50, "", encoder())).shape == (7, 46, 62, 3)


def test_the_best_encoder_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder() == THERE[0]
    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "libsvtav1"})
    assert encoder() == "libsvtav1"
    monkeypatch.setattr(av, "codecs_available", {"png"})
    with pytest.raises(RuntimeError, match="none of the encoders libx264"):
        encoder()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RuntimeError, match=r"darkroom\[video\]"):
        video.encoder()
