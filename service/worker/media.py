"""Pictures to bytes, with what made them written inside."""

from __future__ import annotations

import io
import json

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from service.jobs.job import TextToImage

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_USER_COMMENT = 0x9286  # Exif tag
_EXIF_IFD = 0x8769


def encode_picture(picture: NDArray[np.uint8], request: TextToImage, seed: int) -> bytes:
    """uint8 [H, W, 3] -> the bytes of the format that the request asks for."""
    image = Image.fromarray(picture)
    origin = json.dumps(
        {
            "software": "darkroom",
            "model": request.model,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": seed,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "scheduler": request.scheduler,
        }
    )
    buffer = io.BytesIO()
    if request.output_format == "png":
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", origin)
        image.save(buffer, "png", pnginfo=text)
    else:
        exif = Image.Exif()
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"ASCII\0\0\0" + origin.encode("ascii")
        image.save(buffer, request.output_format, quality=request.output_compression, exif=exif)
    return buffer.getvalue()
