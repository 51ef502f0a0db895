"""The vector-quantised autoencoder of latent diffusion (Rombach et al. 2022, appendix G; van den Oord et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.spec.vae import VQSpec
from models.vae import Decoder, Encoder, from_network_scale, to_network_scale


class VQ(nn.Module):
    """Pictures to latents and back. The denoiser works on the latents *before* quantisation, in the network's scale;
    quantisation is the first step of decoding."""

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec, spec.latent_channels)
        self.quant_conv = nn.Conv2d(spec.latent_channels, spec.vq_embed_dim, 1)
        self.quantize = Codebook(spec.num_vq_embeddings, spec.vq_embed_dim)
        self.post_quant_conv = nn.Conv2d(spec.vq_embed_dim, spec.latent_channels, 1)
        self.decoder = Decoder(spec)

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, vq_embed_dim, H/f, W/f], not quantised."""
        h = self.encoder(pictures.to(self.encoder.conv_in.weight.dtype))
        return to_network_scale(self.quant_conv(h), self.spec)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, vq_embed_dim, h, w] -> [B, 3, h*f, w*f], not clamped."""
        return self.decode_indices(self.quantize.nearest(from_network_scale(latents, self.spec)))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Codebook entries by number, as an autoregressive model draws them: int64 [B, h, w] -> [B, 3, h*f, w*f]."""
        return self.decoder(self.post_quant_conv(self.quantize(indices)))


class Codebook(nn.Module):
    """The vectors that a latent may be quantised to."""

    def __init__(self, entries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, dim)

    def forward(self, indices: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, dim, h, w]."""
        return self.embedding(indices).permute(0, 3, 1, 2)

    def nearest(self, z: Tensor) -> Tensor:
        """The number of the entry nearest to each vector (van den Oord et al. 2017, equation 1): [B, dim, h, w] ->
        int64 [B, h, w].

        Distances are taken in fp32 at least: half precision cannot tell the entries of a large codebook apart.
        """
        dtype = torch.promote_types(z.dtype, torch.float32)
        entries = self.embedding.weight.to(dtype)
        vectors = z.to(dtype).permute(0, 2, 3, 1)
        # |z - e|^2 without |z|^2, which is the same for every entry.
        distances = entries.square().sum(dim=1) - 2.0 * (vectors @ entries.T)
        return distances.argmin(dim=-1)
