"""Linear layers whose weights are held in 8 bits, and computed with in the precision of what passes them.

    W[o, i] ~ s[o] q[o, i]     s[o] = max_i |W[o, i]| / 127     q whole, from -127 to 127

One scale for each output (Dettmers et al. 2022, "LLM.int8()", section 3.1, of which this is the weights' side alone),
so no weight is off by more than s[o] / 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 127
_LEAST_SCALE = torch.finfo(torch.float32).tiny


class EightBitLinear(nn.Module):
    """A linear layer without bias. To a checkpoint it looks like the one whose place it takes."""

    scale: Tensor
    """[out] fp32."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        """A layer whose weight is still to be given: :meth:`hold`."""
        super().__init__()
        codes = torch.empty(outputs, inputs, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", torch.empty(outputs, device=device), persistent=False)

    @torch.no_grad()
    def hold(self, weight: Tensor) -> None:
        """Take this weight [out, in], in any real dtype, rounded; the layer is then on its device."""
        exact = weight.float()
        largest = torch.maximum(exact.amax(dim=1), -exact.amin(dim=1))
        self.scale = (largest / LARGEST).clamp_min(_LEAST_SCALE)
        codes = (exact / self.scale[:, None]).round_().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], fp32 or bf16. Both hold the codes exactly; sums over them can overflow in fp16."""
        return (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)


def make_room_in_8_bits(network: nn.Module) -> None:
    """Put an :class:`EightBitLinear` without a weight in the place of every linear layer without a bias."""
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear and layer.bias is None:
                setattr(module, name, EightBitLinear(layer.in_features, layer.out_features, layer.weight.device))


def fill(
    network: nn.Module, stored: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device | str
) -> None:
    """Give a network its weights as they are read, so that no more than one of them is ever there unrounded.

    Args:
        network: may be on the meta device.
        stored: parameters by name.
        dtype: of those that are not held in 8 bits.
        device: where they go.
    """
    for name, tensor in stored:
        owner, _, own_name = name.rpartition(".")
        module = network.get_submodule(owner)
        if isinstance(module, EightBitLinear):
            module.hold(tensor.to(device))
        else:
            setattr(module, own_name, nn.Parameter(tensor.to(device, dtype), requires_grad=False))


def weight_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    """Memory of a network whose layers that are not held in 8 bits are in ``dtype``; what is shared counts once."""
    rounded = (module for module in network.modules() if isinstance(module, EightBitLinear))
    others = (parameter for parameter in network.parameters() if parameter.dtype != torch.int8)
    held = sum(module.weight.nbytes + module.scale.nbytes for module in rounded)
    return held + dtype.itemsize * sum(parameter.numel() for parameter in others)
