"""Pictures to bytes, with what made them written inside unless the request says otherwise."""

from __future__ import annotations

import io
import json

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from service.jobs.job import ImageToImage, ImageToVideo, Inpainting, PictureRequest, Upscaling

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4"}
PREVIEW_QUALITY = 80
_USER_COMMENT = 0x9286  # Exif tag
_EXIF_IFD = 0x8769


def encode_picture(picture: NDArray[np.uint8], request: PictureRequest, seed: int) -> bytes:
    """uint8 [H, W, 3] -> the bytes of the format that the request asks for."""
    image = Image.fromarray(picture)
    buffer = io.BytesIO()
    if request.output_format == "png":
        text = PngImagePlugin.PngInfo()
        if request.metadata:
            text.add_text("parameters", origin(request, seed))
        image.save(buffer, "png", pnginfo=text)
    else:
        exif = Image.Exif()
        if request.metadata:
            exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"ASCII\0\0\0" + origin(request, seed).encode("ascii")
        image.save(buffer, request.output_format, quality=request.output_compression, exif=exif)
    return buffer.getvalue()


def encode_preview(pixels: NDArray[np.uint8], request: PictureRequest) -> bytes:
    """uint8 [h, w, 3] of any size -> a picture of the request's size and format, with nothing written inside."""
    image = Image.fromarray(pixels).resize((request.width, request.height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, request.output_format, **{} if request.output_format == "png" else {"quality": PREVIEW_QUALITY})
    return buffer.getvalue()


def origin(request: PictureRequest | ImageToVideo, seed: int) -> str:
    """What made a picture or clip, as ASCII JSON."""
    about: dict[str, object] = {
        "software": "darkroom",
        "model": request.model,
        "prompt": request.prompt,
        "seed": seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "scheduler": request.scheduler,
    }
    if isinstance(request, ImageToVideo):
        names = ("frames", "segments", "fps", "motion_bucket_id", "noise_aug_strength", "min_guidance_scale")
        about |= {name: getattr(request, name) for name in names}
    else:
        about["negative_prompt"] = request.negative_prompt
    if isinstance(request, ImageToImage | Inpainting):
        about["strength"] = request.strength
    if isinstance(request, Upscaling):
        about["noise_level"] = request.noise_level
    if request.loras:
        about["loras"] = [adapter.model_dump() for adapter in request.loras]
    return json.dumps(about)
