"""Input pictures: artifacts of a request to arrays, and arrays to what the networks take."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.jobs.artifacts import ArtifactStore
from service.jobs.job import ImageToVideo, Inpainting, PictureRequest, TextToImage, Upscaling


@dataclass(frozen=True)
class Inputs:
    """What a request begins from; a request for pictures from text begins from nothing."""

    image: NDArray[np.uint8] | None = None
    """[H, W, 3]."""
    mask: NDArray[np.uint8] | None = None
    """[H, W], white where the row may paint."""


NO_INPUTS = Inputs()


def read_inputs(request: PictureRequest | ImageToVideo, artifacts: ArtifactStore) -> Inputs:
    """The inputs of a request. They were checked, turned and scaled when the request was accepted.

    Raises:
        ValueError: an input is not there any more, is no picture, or has another size than the request says; the
            message names it.
    """
    if isinstance(request, TextToImage):
        return NO_INPUTS
    factor = request.factor if isinstance(request, Upscaling) else 1
    size = (request.width // factor, request.height // factor)
    image = _read("image", request.image, "RGB", size, artifacts)
    if isinstance(request, Inpainting):
        return Inputs(image, _read("mask", request.mask, "L", size, artifacts))
    return Inputs(image)


def picture_tensor(image: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> fp32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def mask_tensor(mask: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W] -> fp32 [1, H, W] in [0, 1]."""
    return torch.from_numpy(mask.copy())[None].float() / 255.0


def _read(field: str, name: str, mode: str, size: tuple[int, int], artifacts: ArtifactStore) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(artifacts.open(name))) as picture:
            if picture.size != size:
                raise ValueError(f"{field} is {picture.size[0]}x{picture.size[1]}, expected {size[0]}x{size[1]}")
            return np.asarray(picture.convert(mode), dtype=np.uint8)
    except KeyError:
        raise ValueError(f"{field} {name} is not there any more") from None
    except OSError as error:
        raise ValueError(f"{field} {name} cannot be read: {error}") from error
