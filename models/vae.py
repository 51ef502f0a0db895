"""The KL autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor, nn

from kernels.group_norm_silu import group_norm_silu
from models.blocks import Downsample, PixelAttention, ResnetBlock, Upsample
from models.spec.vae import AutoencoderSpec, ConvAutoencoderSpec, VAESpec

EPS = 1e-6
LAYOUT = torch.channels_last
"""How feature maps lie in memory: CPU convolutions take up to a fifth less time than with channels outermost, and the
tokens of the attention are views."""


class KLEncoder(nn.Module):
    """The encoding half of a KL autoencoder: pictures in [-1, 1] to the posterior of their latents."""

    def __init__(self, spec: ConvAutoencoderSpec, quant_conv: bool) -> None:
        super().__init__()
        self.spec = spec
        moments = 2 * spec.latent_channels
        self.encoder = Encoder(spec, moments)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if quant_conv else None

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, unscaled: [B, 3, H, W] -> twice [B, latent, H/f, W/f]."""
        h = self.encoder(pictures.to(self.encoder.conv_in.weight.dtype))
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """The posterior's mean, or a sample when ``noise`` is given, in the network's scale.

        Args:
            pictures: [B, 3, H, W] in [-1, 1]; H and W multiples of ``spec.downscale``.
            noise: [B, latent, H/f, W/f], standard normal.

        Returns:
            [B, latent, H/f, W/f].
        """
        return self.sample(*self.moments(pictures), noise)

    def sample(self, mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
        """The same from the posterior's moments; all are [B, latent, H/f, W/f]."""
        latents = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        return to_network_scale(latents, self.spec)

    def encode_unscaled(self, pictures: Tensor) -> Tensor:
        """The posterior's mode in the autoencoder's own scale, which video networks take as their conditioning latent
        (Blattmann et al. 2023, appendix D): [B, 3, H, W] -> [B, latent, H/f, W/f]."""
        return self.moments(pictures)[0]


class VAE(KLEncoder):
    """Pictures to latents and back. Pictures are in [-1, 1]; latents leave and enter in the *network's* scale, the
    published ``scaling_factor`` and ``shift_factor`` applied here and nowhere else. Whatever enters is cast to the
    dtype of the weights, which is fixed when they are loaded."""

    spec: VAESpec

    def __init__(self, spec: VAESpec) -> None:
        super().__init__(spec, spec.use_quant_conv)
        self.decoder = Decoder(spec)
        self.post_quant_conv = (
            nn.Conv2d(spec.latent_channels, spec.latent_channels, 1) if spec.use_post_quant_conv else None
        )

    def decode(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, h*f, w*f], not clamped."""
        z = from_network_scale(latents, self.spec).to(self.decoder.conv_in.weight.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)


class PictureAutoencoder(Protocol):
    """Whatever turns latents [B, latent, h, w] in the network's scale into pictures [B, 3, h*f, w*f]."""

    def decode(self, latents: Tensor) -> Tensor: ...


class VAEDecoder(nn.Module):
    """The decoding half as a network of its own, so that it can be exported and replaced by an engine."""

    def __init__(self, vae: PictureAutoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, h*f, w*f], not clamped."""
        return self.vae.decode(latents)


def to_network_scale(z: Tensor, spec: AutoencoderSpec) -> Tensor:
    """An autoencoder's latents as the denoiser sees them; any shape."""
    return (z - spec.shift_factor if spec.shift_factor else z) * spec.scaling_factor


def from_network_scale(latents: Tensor, spec: AutoencoderSpec) -> Tensor:
    """The inverse of :func:`to_network_scale`."""
    z = latents / spec.scaling_factor
    return z + spec.shift_factor if spec.shift_factor else z


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, out_channels, H/f, W/f]."""

    def __init__(self, spec: ConvAutoencoderSpec, out_channels: int) -> None:
        super().__init__()
        channels = spec.block_out_channels
        self.conv_in = nn.Conv2d(spec.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        previous = channels[0]
        for level, width in enumerate(channels):
            self.down_blocks.append(DownBlock(previous, width, spec, level))
            previous = width
        self.mid_block = MidBlock(previous, spec)
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, previous, EPS)
        self.conv_out = nn.Conv2d(previous, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x.contiguous(memory_format=LAYOUT))
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        norm = self.conv_norm_out
        return self.conv_out(group_norm_silu(h, norm.weight, norm.bias, norm.num_groups, norm.eps))


class Decoder(nn.Module):
    """[B, latent, h, w] -> [B, 3, h*f, w*f]."""

    def __init__(self, spec: ConvAutoencoderSpec) -> None:
        super().__init__()
        channels = spec.block_out_channels
        previous = channels[-1]
        self.conv_in = nn.Conv2d(spec.latent_channels, previous, 3, padding=1)
        self.mid_block = MidBlock(previous, spec)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(channels))):
            self.up_blocks.append(UpBlock(previous, channels[level], spec, level))
            previous = channels[level]
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, previous, EPS)
        self.conv_out = nn.Conv2d(previous, spec.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z.contiguous(memory_format=LAYOUT)))
        for block in self.up_blocks:
            h = block(h)
        norm = self.conv_norm_out
        return self.conv_out(group_norm_silu(h, norm.weight, norm.bias, norm.num_groups, norm.eps))


class DownBlock(nn.Module):
    """Residual blocks, each with attention where the level has it, then a downsampling unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, spec: ConvAutoencoderSpec, level: int) -> None:
        super().__init__()
        last = level == len(spec.block_out_channels) - 1
        widths = [in_channels] + [out_channels] * (spec.layers_per_block - 1)
        self.resnets = nn.ModuleList([ResnetBlock(w, out_channels, spec.norm_num_groups, EPS) for w in widths])
        self.attentions = _attentions(len(widths) if level in spec.attention_levels else 0, out_channels, spec)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels, asymmetric=True)])

    def forward(self, h: Tensor) -> Tensor:
        h = _alternate(h, self.resnets, self.attentions)
        for layer in self.downsamplers:
            h = layer(h)
        return h


class UpBlock(nn.Module):
    """One residual block more than the encoder's level has, then an upsampling unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, spec: ConvAutoencoderSpec, level: int) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * spec.layers_per_block
        self.resnets = nn.ModuleList([ResnetBlock(w, out_channels, spec.norm_num_groups, EPS) for w in widths])
        self.attentions = _attentions(len(widths) if level in spec.attention_levels else 0, out_channels, spec)
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if level else [])

    def forward(self, h: Tensor) -> Tensor:
        h = _alternate(h, self.resnets, self.attentions)
        for layer in self.upsamplers:
            h = layer(h)
        return h


class MidBlock(nn.Module):
    """Residual block, one-head attention over all positions, residual block."""

    def __init__(self, channels: int, spec: ConvAutoencoderSpec) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, spec.norm_num_groups, EPS) for _ in range(2)])
        self.attentions = _attentions(1 if spec.mid_block_add_attention else 0, channels, spec)

    def forward(self, h: Tensor) -> Tensor:
        return _alternate(h, self.resnets, self.attentions)


def _attentions(count: int, channels: int, spec: ConvAutoencoderSpec) -> nn.ModuleList:
    return nn.ModuleList([PixelAttention(channels, spec.norm_num_groups) for _ in range(count)])


def _alternate(h: Tensor, resnets: nn.ModuleList, attentions: nn.ModuleList) -> Tensor:
    for resnet, attention in zip_longest(resnets, attentions):
        h = resnet(h)
        if attention is not None:
            h = attention(h)
    return h
