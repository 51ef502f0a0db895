"""Clips to bytes: an MP4 with what made it written inside, and two pictures that stand for it."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.jobs.job import ImageToVideo
from service.worker.media import origin

CODECS: Mapping[str, Mapping[str, str]] = {
    # With the processor's own instructions its bytes are not always the same where several clips are encoded at once.
    "libx264": {"preset": "veryfast", "x264-params": "cpu-independent=1"},
    "libopenh264": {},
    "libsvtav1": {"preset": "10"},
    "mpeg4": {},
}
"""Encoders by preference, with their options. H.264 plays everywhere; libx264 is under the GPL, and an FFmpeg that was
built without it has one of the others: every FFmpeg has the last."""
THUMBNAIL_PIXELS = 256
"""The longer side of a thumbnail."""
SHEET_COLUMNS = 5
SHEET_PIXELS = 192
"""The longer side of a frame on a spritesheet."""
_CRF = {"libx264": (51, 16), "libsvtav1": (63, 18)}
"""Constant rate factors for the qualities 0 and 100."""
_QUANTISER = {"mpeg4": (31, 2)}


@dataclass(frozen=True)
class EncodedClip:
    """A clip and what stands for it."""

    content: bytes
    variants: Mapping[str, tuple[bytes, str]]
    """Bytes and media type by name: thumbnail and spritesheet."""


def encode_clip(frames: NDArray[np.uint8], request: ImageToVideo, seed: int) -> EncodedClip:
    """uint8 [T, H, W, 3] -> MP4, a WebP of the first frame, and a JPEG of all frames side by side, row by row.

    Raises:
        RuntimeError: PyAV is not installed, or its FFmpeg has none of the encoders.
    """
    about = origin(request, seed) if request.metadata else ""
    content = encode_mp4(frames, request.fps, request.output_compression, about, encoder())
    variants = {
        "thumbnail": (_thumbnail(frames[0]), "image/webp"),
        "spritesheet": (_spritesheet(frames), "image/jpeg"),
    }
    return EncodedClip(content, variants)


def encoder() -> str:
    """The best encoder that is there.

    Raises:
        RuntimeError: there is none.
    """
    try:
        import av
    except ImportError as error:
        raise RuntimeError("clips need PyAV: pip install 'darkroom[video]'") from error
    for name in CODECS:
        if name in av.codecs_available:
            return name
    raise RuntimeError(f"PyAV's FFmpeg has none of the encoders {', '.join(CODECS)}")


def encode_mp4(frames: NDArray[np.uint8], fps: int, quality: int, about: str, codec: str) -> bytes:
    """An MP4 that begins to play before all of it has arrived.

    Args:
        frames: uint8 [T, H, W, 3]; odd sides lose a line, which 4:2:0 colours need.
        fps: frames a second.
        quality: 0 to 100.
        about: the comment in its header; empty: none.
        codec: a name in ``CODECS``.
    """
    import av

    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    with tempfile.TemporaryDirectory() as folder:
        # A file, since the muxer reads it once more to put its index in front.
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            if about:
                container.metadata["comment"] = about
            options = {**CODECS[codec], **_quality(codec, quality)}
            stream = cast(av.VideoStream, container.add_stream(codec, rate=Fraction(fps), options=options))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            # One thread: with more, some encoders' bytes depend on how the threads met.
            stream.thread_count = 1
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()


def _quality(codec: str, quality: int) -> dict[str, str]:
    """The encoder's own scale: from the worst to the best of it."""
    for scale, names in ((_CRF, ("crf",)), (_QUANTISER, ("qmin", "qmax"))):
        if codec in scale:
            worst, best = scale[codec]
            return dict.fromkeys(names, str(round(worst + (best - worst) * quality / 100)))
    return {}


def _thumbnail(frame: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=85)
    return buffer.getvalue()


def _spritesheet(frames: NDArray[np.uint8]) -> bytes:
    small = [Image.fromarray(frame) for frame in frames]
    for image in small:
        image.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
    width, height = small[0].size
    columns = min(SHEET_COLUMNS, len(small))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(small) / columns) * height))
    for i, image in enumerate(small):
        sheet.paste(image, (i % columns * width, i // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "jpeg", quality=85)
    return buffer.getvalue()
