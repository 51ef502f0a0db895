"""The autoencoder of Stable Video Diffusion: an image encoder, and a decoder whose frames see each other (Blattmann et
al. 2023, section 4.1; Blattmann et al. 2023b "Align your latents", section 3.1.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.group_norm_silu import group_norm_silu
from kernels.temporal_conv import temporal_conv
from models.blocks import PixelAttention, ResnetBlock, Upsample
from models.spec.vae import TemporalVAESpec
from models.vae import EPS, KLEncoder, from_network_scale
from models.video_blocks import Mixer, TemporalResnetBlock, per_frame

TEMPORAL_EPS = 1e-5


class TemporalDecoderVAE(KLEncoder):
    """Pictures to latents, clips of latents to clips; value ranges, scale and dtype as :class:`models.vae.VAE`."""

    spec: TemporalVAESpec

    def __init__(self, spec: TemporalVAESpec) -> None:
        super().__init__(spec, quant_conv=True)
        self.decoder = TemporalDecoder(spec)

    def decode(self, latents: Tensor, chunk_frames: int) -> Tensor:
        """Decode clips, each in chunks of its own frames.

        Args:
            latents: [B, T, latent, h, w] in the network's scale.
            chunk_frames: frames decoded together. It bounds memory and is a setting of *quality*: a frame sees only the
                neighbours in its own chunk, so another value gives other pixels.

        Returns:
            [B, T, 3, h*f, w*f], not clamped.

        Raises:
            ValueError: ``chunk_frames`` is below 1.
        """
        return decode_in_chunks(self.decode_chunk, latents, chunk_frames)

    def decode_chunk(self, latents: Tensor) -> Tensor:
        """All frames together: [B, T, latent, h, w] -> [B, T, 3, h*f, w*f]."""
        z = from_network_scale(latents, self.spec)
        return self.decoder(z.to(self.decoder.conv_in.weight.dtype))


class TemporalVAEDecoder(nn.Module):
    """The decoding half as a network of its own, so that it can be exported and replaced by an engine."""

    def __init__(self, vae: TemporalDecoderVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """One chunk of each clip: [B, T, latent, h, w] -> [B, T, 3, h*f, w*f], not clamped."""
        return self.vae.decode_chunk(latents)


def decode_in_chunks(decode: Callable[[Tensor], Tensor], latents: Tensor, chunk_frames: int) -> Tensor:
    """Decode clips [B, T, ...] by chunks of frames that never span two clips; the last chunk may be shorter.

    Raises:
        ValueError: ``chunk_frames`` is below 1.
    """
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames is {chunk_frames}, expected at least 1")
    return torch.cat([decode(chunk) for chunk in latents.split(chunk_frames, dim=1)], dim=1)


class TemporalDecoder(nn.Module):
    """[B, T, latent, h, w] -> [B, T, 3, h*f, w*f]."""

    def __init__(self, spec: TemporalVAESpec) -> None:
        super().__init__()
        channels = spec.block_out_channels
        previous = channels[-1]
        self.conv_in = nn.Conv2d(spec.latent_channels, previous, 3, padding=1)
        self.mid_block = TemporalMidBlock(previous, spec)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(channels))):
            self.up_blocks.append(TemporalUpBlock(previous, channels[level], spec, upsample=level > 0))
            previous = channels[level]
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, previous, EPS)
        self.conv_out = nn.Conv2d(previous, spec.out_channels, 3, padding=1)
        self.time_conv_out = nn.Conv3d(spec.out_channels, spec.out_channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(per_frame(self.conv_in, z))
        for block in self.up_blocks:
            h = block(h)
        h = per_frame(self._picture, h)
        return temporal_conv(h, self.time_conv_out.weight, self.time_conv_out.bias)

    def _picture(self, h: Tensor) -> Tensor:
        norm = self.conv_norm_out
        return self.conv_out(group_norm_silu(h, norm.weight, norm.bias, norm.num_groups, norm.eps))


class TemporalMidBlock(nn.Module):
    """Residual block, one-head attention over the pixels of each frame, residual block."""

    def __init__(self, channels: int, spec: TemporalVAESpec) -> None:
        super().__init__()
        groups = spec.norm_num_groups
        self.resnets = nn.ModuleList(
            [SpatioTemporalResnetBlock(channels, channels, groups) for _ in range(spec.layers_per_block)]
        )
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, h: Tensor) -> Tensor:
        h = self.resnets[0](h)
        # As published: with one residual block the attention does not run, and of three the last does not.
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=False):
            h = resnet(per_frame(attention, h))
        return h


class TemporalUpBlock(nn.Module):
    """Residual blocks, then an upsampling unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, spec: TemporalVAESpec, upsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * spec.layers_per_block
        self.resnets = nn.ModuleList([SpatioTemporalResnetBlock(w, out_channels, spec.norm_num_groups) for w in widths])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, h: Tensor) -> Tensor:
        for resnet in self.resnets:
            h = resnet(h)
        for layer in self.upsamplers:
            h = per_frame(layer, h)
        return h


class SpatioTemporalResnetBlock(nn.Module):
    """A residual block a frame, one over the frames, and a learned mixture of the two."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock(in_channels, out_channels, groups, EPS)
        self.temporal_res_block = TemporalResnetBlock(out_channels, TEMPORAL_EPS, groups=groups)
        self.time_mixer = SwitchedMixer()

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, Cin, H, W] -> [B, T, Cout, H, W]."""
        spatial = per_frame(self.spatial_res_block, x)
        return self.temporal_res_block(spatial, share=self.time_mixer.temporal_share())


class SwitchedMixer(Mixer):
    """The UNet's mixer the other way round: its learned share is that of the temporal result."""

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Two tensors of one shape -> 1 - alpha of the first and alpha of the second."""
        return super().forward(temporal, spatial)

    def temporal_share(self) -> Tensor:
        """alpha, [1]."""
        return torch.sigmoid(self.mix_factor)
