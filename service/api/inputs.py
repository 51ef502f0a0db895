"""Pictures that requests begin from: decoded under limits, turned upright, fitted, and kept as artifacts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from service.errors import InvalidRequest
from service.jobs.artifacts import ArtifactStore

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 40_000_000
"""160 MB while it is decoded; a telephone's camera takes 12 to 24 million. It is known before anything is decoded."""
MAX_ASPECT = 50
"""A line of pixels has no content."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Kept:
    """Names of the artifacts that a request begins from; both are of exactly this size."""

    image: str
    mask: str | None
    size: Size


def keep_inputs(
    artifacts: ArtifactStore,
    image: bytes,
    mask: bytes | None,
    choose: Callable[[Size], Size],
    name: str = "image",
) -> Kept:
    """Put what a client sent into the artifact store, as any worker can use it.

    Slow (some 10 ms a megapixel): call it in a thread.

    Args:
        artifacts: where to put them.
        image: an encoded picture.
        mask: one of the same width and height: transparent, or in an opaque one white, where may be painted.
        choose: width and height of the upright picture -> those at which it is kept, for which it is scaled and cut.
        name: how the request calls its picture.

    Raises:
        InvalidRequest: they are no pictures, or beyond a limit, or ``choose`` says so; ``param`` says which of the two.
    """
    with decode(image, name) as opened:
        upright = ImageOps.exif_transpose(opened)
        chosen = choose(upright.size)
        mask_name = None
        if mask is not None:
            with decode(mask, "mask") as opened_mask:
                area = paintable(ImageOps.exif_transpose(opened_mask))
            if area.size != upright.size:
                raise InvalidRequest(
                    f"mask has {_shown(area.size)} pixels, {name} {_shown(upright.size)}", param="mask"
                )
            mask_name = artifacts.put(_png(ImageOps.fit(area, chosen, Image.Resampling.BOX)))
        fitted = ImageOps.fit(_rgb(upright), chosen, Image.Resampling.LANCZOS)
    return Kept(artifacts.put(_png(fitted)), mask_name, chosen)


def decode(content: bytes, param: str) -> Image.Image:
    """The picture in a file, of an animation the first.

    Raises:
        InvalidRequest: it is none, is cut off, or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"{param} has more than {MAX_PIXELS} pixels, the limit", param=param) from None
    except Exception:  # A decoder may raise anything at what it did not expect.
        kinds = ", ".join(FORMATS)
        raise InvalidRequest(f"{param} ({len(content)} bytes) is none of {kinds}", param=param) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidRequest(f"{param} has {_shown(image.size)} pixels; the limit is {MAX_PIXELS}", param=param)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidRequest(
            f"{param} has {_shown(image.size)} pixels; one side may be {MAX_ASPECT} times the other", param=param
        )
    try:
        image.load()
    except Exception:
        image.close()
        raise InvalidRequest(f"{param} is a broken {image.format} file", param=param) from None
    return image


def paintable(mask: Image.Image) -> Image.Image:
    """Grey picture, white where may be painted: OpenAI's masks are transparent there, other tools' white.

    Raises:
        InvalidRequest: nowhere.
    """
    area = ImageOps.invert(_rgba(mask).getchannel("A"))
    if area.getextrema() == (0, 0):
        area = _grey(mask)
    if area.getextrema() == (0, 0):
        raise InvalidRequest("mask leaves nothing to paint: it is neither transparent nor white anywhere", param="mask")
    return area


def nearest_proportions(size: Size, sizes: Sequence[Size]) -> Size:
    """That of ``sizes`` (width, height) which cuts the least from a picture; of several the first."""
    aspect = size[0] / size[1]
    return max(sizes, key=lambda other: min(aspect * other[1] / other[0], other[0] / (aspect * other[1])))


def _rgb(image: Image.Image) -> Image.Image:
    """On white, for what is behind transparent pixels is anybody's guess."""
    if image.mode.startswith("I"):
        return _grey(image).convert("RGB")
    rgba = _rgba(image)
    ground = Image.new("RGB", image.size, "white")
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def _rgba(image: Image.Image) -> Image.Image:
    return (_grey(image) if image.mode.startswith("I") else image).convert("RGBA")


def _grey(image: Image.Image) -> Image.Image:
    # Pillow cuts 16 bits to 8 instead of scaling them.
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("L")


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png", compress_level=1)
    return file.getvalue()


def _shown(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
