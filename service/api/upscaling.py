"""Pictures to be enlarged: how large they may be, and how much noise is put on them."""

from __future__ import annotations

import math

from models.spec.model import ModelSpec, UpscalingSpec
from service.api.inputs import Size
from service.errors import InvalidRequest

NOISE_LEVEL = 20
"""The default of the published pipeline."""


def enlargeable(size: Size, spec: ModelSpec, upscaling: UpscalingSpec) -> Size:
    """The size itself: a picture to be enlarged is taken as it is.

    Raises:
        InvalidRequest: enlarged it would have more pixels than the largest size of the model.
    """
    width, height = (side // upscaling.factor for side in max(spec.sizes, key=math.prod))
    if math.prod(size) > width * height:
        raise InvalidRequest(
            f"image has {size[0]}x{size[1]} pixels; model {spec.name!r} enlarges pictures of at most "
            f"{width * height} pixels, such as {width}x{height}",
            param="image",
        )
    return size


def choose_noise_level(asked: int | None, upscaling: UpscalingSpec) -> int:
    """What was asked for, or the default.

    Raises:
        InvalidRequest: the model knows no such level.
    """
    most = upscaling.max_noise_level
    if asked is None:
        return min(NOISE_LEVEL, most)
    if asked > most:
        raise InvalidRequest(f"noise_level {asked} is over the limit of {most}", param="noise_level")
    return asked
