"""Networks whose call is not yet that of a graph: tensors in, one tensor or a tuple of them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from engines.signature import Signature

if TYPE_CHECKING:
    from transformers import T5EncoderModel


class Posterior(Protocol):
    """The encoding half of a KL autoencoder; :meth:`models.vae.KLEncoder.moments`."""

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]: ...


class VAEEncoder(nn.Module):
    """The encoding half of a KL autoencoder as a network of its own."""

    def __init__(self, vae: Posterior) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> mean and log-variance of the posterior, unscaled: [B, 2 * latent, H/f, W/f]."""
        return torch.cat(self.vae.moments(pictures), dim=1)


class T5Network(nn.Module):
    """The encoder of T5."""

    def __init__(self, network: T5EncoderModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, N] -> [B, N, D]."""
        hidden: Tensor = self.network(ids).last_hidden_state
        return hidden


class AsGraph(nn.Module):
    """A network as its graph calls it: without the inputs that never hold an element, fp32 out."""

    def __init__(self, network: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self.signature = signature

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's inputs in order -> the network's outputs."""
        given, sizes = iter(inputs), {"batch": inputs[0].shape[0]}
        filled = (
            inputs[0].new_zeros(port.shape(sizes)) if port.empty else next(given) for port in self.signature.inputs
        )
        outputs = self.network(*filled)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)
