"""A picture and three numbers -> what Stable Video Diffusion is conditioned on (Blattmann et al. 2023, section 4.1).

The conditioning latent is not made here: it needs the autoencoder and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import fourier_features
from models.conditioners.condition import Condition, TowerOf, on_torch
from models.spec.config import read_json, reading

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

VISION_SIZE = 224
"""Pixels a side that the vision tower sees."""
VisionNetwork = Callable[[Tensor], Tensor]
"""Normalised pixels [B, 3, S, S] fp32 -> [B, P]: :class:`ClipVision`, or an engine of one."""


class ClipVision(nn.Module):
    """A CLIP vision tower with its projection, on torch."""

    def __init__(self, clip: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S], normalised -> [B, P]."""
        token: Tensor = self.clip(pixels.to(self.clip.device, self.clip.dtype)).image_embeds
        return token


class SVDConditioner:
    """The projected CLIP token of the clean picture, and Fourier features of frame rate, motion and added noise."""

    def __init__(self, tower: VisionNetwork, mean: Sequence[float], std: Sequence[float], time_id_dim: int) -> None:
        """
        Args:
            tower: in eval mode.
            mean: of each colour in [0, 1], which the tower was trained with.
            std: of each colour.
            time_id_dim: Fourier features of each number.
        """
        self.tower = tower
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]
        self.time_id_dim = time_id_dim

    @classmethod
    def load(
        cls,
        folder: Path,
        time_id_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tower_of: TowerOf = on_torch,
    ) -> SVDConditioner:
        """Read ``image_encoder`` and ``feature_extractor`` of a diffusers folder."""
        name = "image_encoder"
        tower = tower_of(name, partial(load_clip_vision, folder / name, dtype, device))
        path = folder / "feature_extractor" / "preprocessor_config.json"
        with reading(path):
            colours = read_json(path)
            return cls(tower, colours["image_mean"], colours["image_std"], time_id_dim)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The vision tower, if it is on torch."""
        return (self.tower,) if isinstance(self.tower, nn.Module) else ()

    @torch.inference_mode()
    def encode(
        self, picture: Tensor, fps: int = 7, motion_bucket_id: int = 127, noise_aug_strength: float = 0.02
    ) -> Condition:
        """Condition of one clip: context [1, D], vector [3 * time_id_dim].

        Args:
            picture: [3, H, W], the clean one; uint8 in [0, 255] or real in [-1, 1].
            fps: frames a second of the clip; the network is told one less, as it was trained.
            motion_bucket_id: amount of motion, 0 to 255.
            noise_aug_strength: standard deviation of the noise in the picture behind the conditioning latent.

        Raises:
            ValueError: ``picture`` has another shape, or a side of less than 2 pixels.
        """
        seen = resize_antialiased(_signed(picture)[None], VISION_SIZE, VISION_SIZE)
        pixels = ((seen + 1.0) / 2.0 - self.mean) / self.std
        token = self.tower(pixels)
        numbers = torch.tensor([fps - 1, motion_bucket_id, noise_aug_strength], dtype=torch.float32)
        return Condition(token.float().cpu(), fourier_features(numbers, self.time_id_dim).flatten())

    def encode_pair(
        self, picture: Tensor, fps: int = 7, motion_bucket_id: int = 127, noise_aug_strength: float = 0.02
    ) -> tuple[Condition, Condition]:
        """Positive and negative condition of one clip: the negative has a token of zeros and the same vector."""
        positive = self.encode(picture, fps, motion_bucket_id, noise_aug_strength)
        return positive, replace(positive, context=torch.zeros_like(positive.context))


def load_clip_vision(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ClipVision:
    """The network of a folder such as ``image_encoder`` on torch, for inference."""
    from transformers import CLIPVisionModelWithProjection  # takes seconds, and engines do without

    from models.encoders import load_encoder

    return ClipVision(load_encoder(CLIPVisionModelWithProjection, folder, dtype, device)).eval()


def resize_antialiased(pictures: Tensor, height: int, width: int) -> Tensor:
    """Gaussian blur of the width that the reduction asks for, then bicubic sampling, corner to corner.

    Args:
        pictures: [B, C, H, W] real, H and W at least 2.
        height: of the result.
        width: of the result.

    Returns:
        [B, C, height, width], slightly beyond the range of the input beside sharp edges.
    """
    blurred = _blur(pictures, pictures.shape[-1] / width, dim=-1)
    blurred = _blur(blurred, pictures.shape[-2] / height, dim=-2)
    return F.interpolate(blurred, size=(height, width), mode="bicubic", align_corners=True)


def _blur(pictures: Tensor, reduction: float, dim: int) -> Tensor:
    """Along one dimension, with mirrored borders. Standard deviation (reduction - 1) / 2, cut at twice that."""
    sigma = max((reduction - 1.0) / 2.0, 0.001)
    taps = max(int(4.0 * sigma), 3) // 2 * 2 + 1
    offsets = torch.arange(taps, dtype=pictures.dtype, device=pictures.device) - taps // 2
    kernel = torch.exp(-(offsets**2) / (2.0 * sigma**2))
    channels, reach = pictures.shape[1], taps // 2
    across = dim == -1
    padded = F.pad(pictures, (reach, reach, 0, 0) if across else (0, 0, reach, reach), mode="reflect")
    shape = (channels, 1, 1, taps) if across else (channels, 1, taps, 1)
    return F.conv2d(padded, (kernel / kernel.sum()).expand(channels, taps).reshape(shape), groups=channels)


def _signed(picture: Tensor) -> Tensor:
    """[3, H, W] fp32 in [-1, 1]."""
    if picture.dim() != 3 or picture.shape[0] != 3 or min(picture.shape[1:]) < 2:
        raise ValueError(f"picture has shape {list(picture.shape)}, expected [3, H, W] with H and W at least 2")
    return picture.float() / 255.0 * 2.0 - 1.0 if picture.dtype == torch.uint8 else picture.float()
