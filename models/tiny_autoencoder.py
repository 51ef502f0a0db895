"""The distilled autoencoder TAESD: the same latents as the large one's, a fraction of its cost, softer pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.spec.vae import TinyAutoencoderSpec
from models.vae import LAYOUT, from_network_scale, to_network_scale

LATENT_LIMIT = 3.0
"""Latents are squeezed into (-3, 3) before decoding, as in distillation."""


class TinyAutoencoder(nn.Module):
    """Pictures to latents and back, with the calls, value ranges and dtype rule of :class:`models.vae.VAE`."""

    def __init__(self, spec: TinyAutoencoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = TinyEncoder(spec)
        self.decoder = TinyDecoder(spec)

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, latent, H/f, W/f]."""
        return to_network_scale(self.encoder(pictures), self.spec)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, h*f, w*f], about [-1, 1] and not clamped."""
        return self.decoder(from_network_scale(latents, self.spec))


class TinyEncoder(nn.Module):
    """Residual blocks at each level, a strided convolution between two levels."""

    def __init__(self, spec: TinyAutoencoderSpec) -> None:
        super().__init__()
        width = spec.encoder_block_out_channels[0]
        first = nn.Conv2d(spec.in_channels, width, 3, padding=1)
        layers: list[nn.Module] = []
        for level, blocks in enumerate(spec.num_encoder_blocks):
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False) if level else first)
            layers += [TinyBlock(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, spec.latent_channels, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, latent, H/f, W/f]."""
        x = pictures.to(self.layers[0].get_parameter("weight").dtype, memory_format=LAYOUT)
        return self.layers((x + 1.0) / 2.0)


class TinyDecoder(nn.Module):
    """Residual blocks at each level, nearest-neighbour upsampling and a convolution between two levels."""

    def __init__(self, spec: TinyAutoencoderSpec) -> None:
        super().__init__()
        width = spec.decoder_block_out_channels[0]
        layers: list[nn.Module] = [nn.Conv2d(spec.latent_channels, width, 3, padding=1), nn.ReLU()]
        last = len(spec.num_decoder_blocks) - 1
        for level, blocks in enumerate(spec.num_decoder_blocks):
            layers += [TinyBlock(width) for _ in range(blocks)]
            if level < last:
                layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, spec.out_channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, h*f, w*f]."""
        z = latents.to(self.layers[0].get_parameter("weight").dtype, memory_format=LAYOUT)
        return self.layers(torch.tanh(z / LATENT_LIMIT) * LATENT_LIMIT) * 2.0 - 1.0


class TinyBlock(nn.Module):
    """Three convolutions with ReLU between them and behind the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        # The published names count the two activations.
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return F.relu(self.conv(x) + x)
