"""The multimodal diffusion transformer of SD3 and SD3.5 (Esser et al. 2024, section 4 and appendix B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.adaln import modulate
from models.blocks import TimestepEmbedding, fourier_features
from models.mmdit_blocks import AdaLayerNorm, JointBlock
from models.spec.mmdit import PATCH, MMDiTSpec

TIME_FEATURES = 256


class MMDiT(nn.Module):
    """Predicts the velocity, noise minus data, from a noisy latent, the time and the text."""

    def __init__(self, spec: MMDiTSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        self.pos_embed = PatchEmbedding(spec.in_channels, width, spec.position_size, spec.native_size)
        self.time_text_embed = TimeTextEmbedding(spec.vector_dim, width)
        self.context_embedder = nn.Linear(spec.context_dim, width)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(width, spec.heads, spec.qk_norm, i in spec.dual_attention_layers, last=i == spec.depth - 1)
            for i in range(spec.depth)
        )
        self.norm_out = AdaLayerNorm(width, 2)
        self.proj_out = nn.Linear(width, PATCH * PATCH * spec.out_channels)

    def forward(
        self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, skip: tuple[int, ...] = ()
    ) -> Tensor:
        """One evaluation.

        Args:
            x: [B, in_channels, H, W] in any float dtype, cast to that of the weights; H and W even, at most
                ``2 * spec.position_size``.
            c_noise: [B], 1000 times sigma.
            context: [B, N, context_dim], text tokens. Any N: an encoder that is left out leaves its tokens out.
            vector: [B, vector_dim], pooled text.
            skip: joint blocks that are left out; see :meth:`skipping`.

        Returns:
            [B, out_channels, H, W] in the dtype of the weights.

        Raises:
            ValueError: H or W is odd or too large for the position table.
        """
        dtype = self.proj_out.weight.dtype
        x, context, vector = x.to(dtype), context.to(dtype), vector.to(dtype)
        time = self.time_text_embed(c_noise, vector)
        batch, _, height, width = x.shape
        x, context = self.pos_embed(x), self.context_embedder(context)
        for i, block in enumerate(self.transformer_blocks):
            if i not in skip:
                x, context = block(x, context, time)
        scale, shift = self.norm_out(time)
        patches = self.proj_out(modulate(x, scale, shift))
        patches = patches.view(batch, height // PATCH, width // PATCH, PATCH, PATCH, self.spec.out_channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.spec.out_channels, height, width)

    def skipping(self, layers: tuple[int, ...]) -> SkippingMMDiT:
        """The same network, over the same weights, without these joint blocks: the worse one that skip-layer guidance
        steers away from.

        Raises:
            ValueError: a layer that this network does not have.
        """
        return SkippingMMDiT(self, layers)


class SkippingMMDiT(nn.Module):
    """An :class:`MMDiT` without some of its joint blocks, with the call of every network."""

    def __init__(self, network: MMDiT, layers: tuple[int, ...]) -> None:
        super().__init__()
        if outside := [layer for layer in layers if layer not in range(network.spec.depth)]:
            raise ValueError(f"layers {outside} cannot be skipped, expected 0 to {network.spec.depth - 1}")
        self.network = network
        self.layers = layers

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """As :meth:`MMDiT.forward`."""
        return self.network(x, c_noise, context, vector, self.layers)


class TimeTextEmbedding(nn.Module):
    """The conditioning of every block: the time and the pooled text, embedded and added."""

    def __init__(self, vector_dim: int, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIME_FEATURES, width)
        self.text_embedder = TimestepEmbedding(vector_dim, width)

    def forward(self, c_noise: Tensor, vector: Tensor) -> Tensor:
        """c_noise [B], vector [B, vector_dim] -> [B, C], through the SiLU that every adaptive norm would apply."""
        time = self.timestep_embedder(fourier_features(c_noise, TIME_FEATURES).to(vector.dtype))
        return F.silu(time + self.text_embedder(vector))


class PatchEmbedding(nn.Module):
    """Latents to tokens: a linear map of each 2x2 patch, plus its position in the middle of a larger table."""

    pos_embed: Tensor

    def __init__(self, in_channels: int, width: int, position_size: int, native_size: int) -> None:
        super().__init__()
        self.position_size = position_size
        self.proj = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)
        table = position_table(width, position_size, native_size)
        self.register_buffer("pos_embed", table.flatten(0, 1)[None])

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, H/2 * W/2, C], row by row."""
        batch, channels, height, width = x.shape
        largest = PATCH * self.position_size
        if height % PATCH or width % PATCH or height > largest or width > largest:
            raise ValueError(f"latents of {height} x {width}, expected even sides of at most {largest}")
        rows, columns = height // PATCH, width // PATCH
        # A convolution that does not overlap is a linear map of patches, and leaves the channels last.
        patches = x.reshape(batch, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5).flatten(3)
        tokens = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        top, left = (self.position_size - rows) // 2, (self.position_size - columns) // 2
        table = self.pos_embed.view(self.position_size, self.position_size, -1)
        return (tokens + table[top : top + rows, left : left + columns]).flatten(1, 2)


def position_table(width: int, size: int, native_size: int) -> Tensor:
    """Sinusoids of column and row (Vaswani et al. 2017, section 3.5, on each axis).

    Args:
        width: channels, a multiple of 4.
        size: side of the table in tokens.
        native_size: side of the training picture in tokens: the table counts from 0 to this.

    Returns:
        [size, size, width] fp32; per axis sines then cosines, columns first.
    """
    positions = torch.arange(size, dtype=torch.float32) / (size / native_size)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = positions[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    columns, rows = axis.expand(size, -1, -1), axis[:, None].expand(-1, size, -1)
    return torch.cat([columns, rows], dim=-1)
