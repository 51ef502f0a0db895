"""What of a model stays in a device's memory between requests. Arithmetic over sizes: no torch, no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WEIGHTS_SHARE = 0.7
"""Of a device's memory, what weights may take. The rest is for what passes make on their way, the most for the decoding
of large pictures."""
DEVICE_GB = (8, 16, 24, 80, 141)
"""Memory of the usual GPUs, in 10^9 bytes."""
T5 = "text_encoder_3"
"""The part that is larger than some denoisers, and that models run without, worse."""

Network = Literal["encoders", "denoiser", "autoencoder"]
_NETWORK_OF: dict[str, Network] = {"unet": "denoiser", "transformer": "denoiser", "vae": "autoencoder"}
"""By the folder of a part; all others are encoders of text and pictures."""
_PLACE: tuple[Network, ...] = ("denoiser", "autoencoder", "encoders")
"""Who stays first: a denoiser runs for each step, encoders once a prompt."""


@dataclass(frozen=True)
class MemoryPlan:
    """One model on one device."""

    stays: tuple[Network, ...]
    """In memory between requests."""
    leaves: tuple[Network, ...]
    """Read for their stage, and gone when the next one needs the room."""
    too_large: tuple[Network, ...]
    """Not even alone in memory: the model cannot run."""
    eight_bit_t5_helps: bool
    """Whether with T5 in 8 bits instead of 16 all would stay, or a model that cannot run could."""

    def __str__(self) -> str:
        """In a few words."""
        if self.too_large:
            said = f"{' and '.join(self.too_large)} too large"
        else:
            said = f"{' and '.join(self.leaves)} leave after use" if self.leaves else "all stays"
        return f"{said}; T5 in 8 bits would help" if self.eight_bit_t5_helps else said


def plan_memory(parameters: Mapping[str, int], device_bytes: int, bytes_each: int = 2) -> MemoryPlan:
    """What stays, leaves, or cannot be on a device.

    Args:
        parameters: of each part of a model, by folder.
        device_bytes: all of its memory.
        bytes_each: of one parameter: 2 in half precision, 4 in fp32.
    """
    room = int(WEIGHTS_SHARE * device_bytes)
    plan = _placed({part: bytes_each * count for part, count in parameters.items()}, room)
    if T5 not in parameters or not (plan.leaves or plan.too_large):
        return plan
    small = _placed({part: (1 if part == T5 else bytes_each) * count for part, count in parameters.items()}, room)
    helps = not small.too_large and (bool(plan.too_large) or not small.leaves)
    return MemoryPlan(plan.stays, plan.leaves, plan.too_large, helps)


def _placed(sizes: Mapping[str, int], room: int) -> MemoryPlan:
    by_network = dict.fromkeys(_PLACE, 0)
    for part, size in sizes.items():
        by_network[_NETWORK_OF.get(part, "encoders")] += size
    too_large = tuple(network for network, size in by_network.items() if size > room)
    stays: list[Network] = []
    taken = 0
    for network in _PLACE:
        if network not in too_large and taken + by_network[network] <= room:
            stays.append(network)
            taken += by_network[network]
    leaves = tuple(network for network in _PLACE if network not in stays and network not in too_large)
    return MemoryPlan(tuple(stays), leaves, too_large, eight_bit_t5_helps=False)
