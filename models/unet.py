"""The denoising UNet of latent diffusion, SDXL and Stable Video Diffusion (Rombach et al. 2022, section 3.2; Podell et
al. 2023, section 2; Blattmann et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.group_norm_silu import group_norm_silu
from models.blocks import TimestepEmbedding, fourier_features
from models.spec.unet import UNetSpec
from models.unet_blocks import Context, down_blocks, mid_block, up_blocks
from models.video_blocks import clip_context, per_frame


class UNet(nn.Module):
    """Predicts eps, v or whatever it was trained to, from a noisy latent, the time and the conditioning."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.block_out_channels
        time_dim = 4 * channels[0]
        self.conv_in = nn.Conv2d(spec.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_dim)
        self.class_embedding = nn.Embedding(spec.num_class_embeds, time_dim) if spec.num_class_embeds else None
        has_features = spec.vector_dim > 0 and self.class_embedding is None
        self.add_embedding = TimestepEmbedding(spec.vector_dim, time_dim) if has_features else None
        self.down_blocks = nn.ModuleList(down_blocks(spec, time_dim))
        self.mid_block = mid_block(spec, time_dim)
        self.up_blocks = nn.ModuleList(up_blocks(spec, time_dim))
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, channels[0], spec.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """One evaluation.

        Args:
            x: [B, in_channels, H, W], or [B, T, in_channels, H, W] for a temporal network; already scaled by c_in,
                conditioning channels behind the noisy ones; any float dtype, cast to that of the weights.
            c_noise: [B], the time as the network was trained to see it (0..999 for discrete schedules).
            context: [B, N, context_dim]: text tokens, an image token, a class token or a set of neighbours; [B, N, 0]
                for a network that takes none, and not read by it.
            vector: [B, vector_dim], pooled text and Fourier features of numbers, ready to be embedded; a class index
                [B, 1] (fp32: bf16 holds whole numbers up to 256 only); [B, 0] for a network that takes none;
                [B, T, vector_dim] where every frame of a clip has its own.

        Returns:
            [B, out_channels, H, W], or [B, T, out_channels, H, W], in the dtype of the weights.

        Raises:
            ValueError: ``x`` or ``vector`` has another number of axes, or ``vector`` another length; or sides are no
                multiples of 2^(levels - 1) where residual blocks halve them.
        """
        self._check(x, vector)
        dtype = self.conv_in.weight.dtype
        x, context = x.to(dtype), context.to(dtype)
        time, frame_context = self._time(c_noise, vector, x), self._context(context, x)
        h = per_frame(self.conv_in, x)
        skips = [h]
        for block in self.down_blocks:
            h = block(h, time, frame_context, skips)
        h = self.mid_block(h, time, frame_context)
        for block in self.up_blocks:
            h = block(h, time, frame_context, skips)
        return per_frame(self._out, h)

    def _check(self, x: Tensor, vector: Tensor) -> None:
        axes = 5 if self.spec.temporal else 4
        if x.dim() != axes:
            raise ValueError(f"x has {x.dim()} axes, expected {axes}")
        multiple = 2 ** (len(self.spec.block_out_channels) - 1)
        if self.spec.resnet_resampling and (x.shape[-2] % multiple or x.shape[-1] % multiple):
            raise ValueError(f"x has sides {x.shape[-2]} and {x.shape[-1]}, expected multiples of {multiple}")
        if vector.dim() != 2 and not (self.spec.temporal and vector.dim() == 3):
            raise ValueError(f"vector has {vector.dim()} axes, expected 2, or 3 for a clip")
        if vector.shape[-1] != self.spec.vector_dim:
            raise ValueError(f"vector has length {vector.shape[-1]}, expected {self.spec.vector_dim}")

    def _time(self, c_noise: Tensor, vector: Tensor, x: Tensor) -> Tensor:
        """[B, time_dim], or [B, T, time_dim] for a clip, through the SiLU that every residual block would apply."""
        spec = self.spec
        features = fourier_features(c_noise, spec.block_out_channels[0], spec.sines_first, spec.freq_shift)
        time = self.time_embedding(features.to(x.dtype))
        if self.spec.temporal:
            time = time[:, None]
        if self.class_embedding is not None:
            time = time + self.class_embedding(vector[..., 0].to(torch.int64))
        if self.add_embedding is not None:
            added = self.add_embedding(vector.to(x.dtype))
            time = time + (added[:, None] if time.dim() > added.dim() else added)
        time = nn.functional.silu(time)
        return time.expand(-1, x.shape[1], -1).contiguous() if self.spec.temporal else time

    def _context(self, context: Tensor, x: Tensor) -> Context:
        if not self.spec.temporal:
            return context
        channels, depths = self.spec.block_out_channels, self.spec.transformer_depth
        attentive = {width for width, depth in zip(channels, depths, strict=True) if depth}
        return clip_context(context, x.shape[1], attentive | {channels[-1]})

    def _out(self, h: Tensor) -> Tensor:
        norm = self.conv_norm_out
        return self.conv_out(group_norm_silu(h, norm.weight, norm.bias, norm.num_groups, norm.eps))
