"""Where the networks of this process run and in which precision, and what their bytes depend on there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels import backend
from models.spec.memory import WEIGHTS_SHARE
from service.settings import Settings

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HOST_SHARE = 0.5
"""Of the machine's memory that is free when the worker starts, what networks may take that had to leave the GPU."""
BF16_SINCE = (8, 0)
"""Compute capability; older GPUs emulate it, slowly."""


@dataclass(frozen=True)
class Placement:
    """A device and the precision of the networks on it. Rows are fp32 in any case."""

    device: torch.device
    dtype: torch.dtype
    eight_bit_t5: bool = False
    """Whether T5 has most of its weights in 8 bits."""

    @property
    def on_gpu(self) -> bool:
        """Whether networks and rows live anywhere but in the machine's own memory."""
        return self.device.type != "cpu"

    @property
    def precision(self) -> str:
        """Name of the dtype: ``fp32``, ``fp16`` or ``bf16``."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    def dtype_of(self, force_upcast: bool) -> torch.dtype:
        """The precision of an autoencoder: fp32 in place of the fp16 that some overflow in (``force_upcast``)."""
        return torch.float32 if force_upcast and self.dtype == torch.float16 else self.dtype

    @property
    def runs_on(self) -> dict[str, str]:
        """What the bytes of every torch network here depend on beside its weights and its precision."""
        if self.device.type == "cpu":
            return {"torch": torch.__version__, "device": f"cpu/{torch.backends.cpu.get_cpu_capability()}"}
        return {
            "torch": torch.__version__,
            "device": device_name(self.device),
            "cudnn": str(torch.backends.cudnn.version()),
            "kernels": backend.numerics(),
        }


def placement(settings: Settings) -> Placement:
    """Where a process with these settings runs its networks.

    Raises:
        ValueError: ``device`` names a GPU that torch does not see.
    """
    device = _device(settings.device)
    return Placement(device, _dtype(settings.precision, device), settings.t5 == "8bit")


def set_up(place: Placement, settings: Settings) -> None:
    """Set up this process: threads, the GPU that kernels are launched on, and the switches of the ops.

    Raises:
        ValueError: ``kernels`` names an op or a backend that there is none of.
    """
    torch.set_num_threads(settings.threads)
    backend.select(backend.read_switches(settings.kernels))
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)


def set_up_loader(place: Placement) -> None:
    """Set up the thread that loads networks: its copies run in a stream of their own, beside the steps."""
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
        torch.cuda.set_stream(torch.cuda.Stream())


def finish_copies() -> None:
    """Wait for what this thread has asked of the GPU, so that another thread's stream can use it."""
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()


def weights_limit(
    place: Placement,
    setting: int,
    free: Callable[[torch.device], tuple[int, int]] = torch.cuda.mem_get_info,
) -> int:
    """Bytes that networks may take on the device together: a share of what is free on a GPU, of all that a machine has.

    Args:
        place: of the networks.
        setting: what they may take at the most, 0 for no other limit than that.
        free: tells free and all bytes of a GPU.
    """
    if not place.on_gpu:
        return setting or int(WEIGHTS_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    room = int(WEIGHTS_SHARE * free(place.device)[0])
    return min(setting, room) if setting else room


def host_limit(place: Placement, setting: int | None) -> int:
    """Bytes of the machine's memory for networks that had to leave the GPU; 0 where networks run on the processor.

    Args:
        place: of the networks.
        setting: as it is set; None: half of what is free.
    """
    if not place.on_gpu:
        return 0
    if setting is not None:
        return setting
    return int(HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def device_name(device: torch.device) -> str:
    """A device's model and, of a GPU, its compute capability."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}/sm_{major}{minor}"


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BF16_SINCE else torch.float16


def _device(name: str) -> torch.device:
    """With its index, which torch's own default leaves out: two names for one device would not compare equal."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    device = torch.device("cuda", 0 if name == "auto" else torch.device(name).index or 0)
    if device.index >= there:
        raise ValueError(f"device is {name!r}, and torch sees {there} CUDA devices")
    return device
