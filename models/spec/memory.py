"""What of a model stays in a device's memory between requests. Arithmetic over sizes: no torch, no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

WEIGHTS_SHARE = 0.7
"""Of a device's memory, what weights may take. The rest is for what passes make on their way, the most for the decoding
of large pictures."""
DEVICE_GB = (8, 16, 24, 80, 141)
"""Memory of the usual GPUs, in 10^9 bytes."""
T5 = "text_encoder_3"
"""The part that is larger than some denoisers, and that models run without, worse."""
T5_BYTES_IN_8_BITS = 1.03
"""Of one parameter of T5-XXL with its linear layers in 8 bits: the table of its tokens stays as it is."""

Network = Literal["encoders", "denoiser", "autoencoder"]
_NETWORK_OF: dict[str, Network] = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "vae": "autoencoder",
    "vqvae": "autoencoder",
}
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
    with_eight_bit_t5: MemoryPlan | None = None
    """The same with T5 in 8 bits, where all would stay then, or a model run that else cannot."""

    def __str__(self) -> str:
        """In a few words."""
        if self.too_large:
            said = f"{' and '.join(self.too_large)} too large"
        else:
            said = f"{' and '.join(self.leaves)} leave after use" if self.leaves else "all stays"
        return said if self.with_eight_bit_t5 is None else f"{said}; T5 in 8 bits: {self.with_eight_bit_t5}"


def plan_memory(
    parameters: Mapping[str, int], device_bytes: int, bytes_each: int = 2, eight_bit_t5: bool = False
) -> MemoryPlan:
    """What stays, leaves, or cannot be on a device.

    Args:
        parameters: of each part of a model, by folder.
        device_bytes: all of its memory.
        bytes_each: of one parameter: 2 in half precision, 4 in fp32.
        eight_bit_t5: whether T5 is held in 8 bits.
    """
    room = int(WEIGHTS_SHARE * device_bytes)
    sizes = {part: bytes_each * count for part, count in parameters.items()}
    small = _placed({**sizes, **_in_8_bits(parameters)}, room)
    if eight_bit_t5:
        return small
    plan = _placed(sizes, room)
    helps = not small.too_large and (bool(plan.too_large) or (bool(plan.leaves) and not small.leaves))
    return replace(plan, with_eight_bit_t5=small) if helps else plan


def bytes_saved(parameters: Mapping[str, int], bytes_each: int = 2) -> int:
    """What T5 in 8 bits takes less than in full; 0 for a model without it."""
    return sum(bytes_each * parameters[part] - size for part, size in _in_8_bits(parameters).items())


def _in_8_bits(parameters: Mapping[str, int]) -> dict[str, int]:
    """Bytes of T5, where there is one."""
    return {T5: int(T5_BYTES_IN_8_BITS * parameters[T5])} if T5 in parameters else {}


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
    return MemoryPlan(tuple(stays), leaves, too_large)
