"""The KL autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import Attention, Downsample, ResnetBlock, Upsample
from models.spec.vae import VAESpec

EPS = 1e-6


class VAE(nn.Module):
    """Pictures to latents and back. Pictures are in [-1, 1]; latents leave and enter in the *network's* scale, the
    published ``scaling_factor`` applied here and nowhere else."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        self.spec = spec
        moments = 2 * spec.latent_channels
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if spec.use_quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(spec.latent_channels, spec.latent_channels, 1) if spec.use_post_quant_conv else None
        )

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, unscaled: [B, 3, H, W] -> twice [B, latent, H/f, W/f]."""
        h = self.encoder(pictures)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, latent, H/f, W/f]: the posterior's mean, or a sample when ``noise`` is given."""
        mean, log_variance = self.moments(pictures)
        latents = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        return latents * self.spec.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, h*f, w*f], not clamped."""
        z = latents / self.spec.scaling_factor
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)


class VAEDecoder(nn.Module):
    """The decoding half as a network of its own, so that it can be exported and replaced by an engine."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, h*f, w*f], not clamped."""
        return self.vae.decode(latents)


class Encoder(nn.Module):
    """[B, 3, H, W] -> moments [B, 2*latent, H/f, W/f]."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        channels = spec.block_out_channels
        self.conv_in = nn.Conv2d(spec.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        previous = channels[0]
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            self.down_blocks.append(DownBlock(previous, width, spec, downsample=not last))
            previous = width
        self.mid_block = MidBlock(previous, spec)
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, previous, EPS)
        self.conv_out = nn.Conv2d(previous, 2 * spec.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    """[B, latent, h, w] -> [B, 3, h*f, w*f]."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        channels = spec.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(spec.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], spec)
        self.up_blocks = nn.ModuleList()
        previous = channels[0]
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            self.up_blocks.append(UpBlock(previous, width, spec, upsample=not last))
            previous = width
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, previous, EPS)
        self.conv_out = nn.Conv2d(previous, spec.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class DownBlock(nn.Module):
    """Residual blocks, then a downsampling unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, spec: VAESpec, downsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (spec.layers_per_block - 1)
        self.resnets = nn.ModuleList([ResnetBlock(w, out_channels, spec.norm_num_groups, EPS) for w in widths])
        self.downsamplers = nn.ModuleList([Downsample(out_channels, asymmetric=True)] if downsample else [])

    def forward(self, h: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.downsamplers]:
            h = layer(h)
        return h


class UpBlock(nn.Module):
    """One residual block more than the encoder's level has, then an upsampling unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, spec: VAESpec, upsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * spec.layers_per_block
        self.resnets = nn.ModuleList([ResnetBlock(w, out_channels, spec.norm_num_groups, EPS) for w in widths])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, h: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.upsamplers]:
            h = layer(h)
        return h


class MidBlock(nn.Module):
    """Residual block, one-head attention over all positions, residual block."""

    def __init__(self, channels: int, spec: VAESpec) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, spec.norm_num_groups, EPS) for _ in range(2)])
        has_attention = spec.mid_block_add_attention
        self.attentions = nn.ModuleList([PixelAttention(channels, spec.norm_num_groups)] if has_attention else [])

    def forward(self, h: Tensor) -> Tensor:
        h = self.resnets[0](h)
        for layer in self.attentions:
            h = layer(h)
        return self.resnets[1](h)


class PixelAttention(Attention):
    """Self-attention with one head over the pixels of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, EPS)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = super().forward(tokens, context)
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)
