"""Times of calls, on a CUDA device beside what that can do at best, and on the processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peaks:
    """What the device was seen to reach, in the same process."""

    flop_per_s: float
    """Of a large product of bf16 matrices."""
    bytes_per_s: float
    """Read and written by a copy of 4 GiB."""

    def floor_ms(self, flop: float, moved_bytes: float) -> float:
        """No kernel that does so much is faster."""
        return 1e3 * max(flop / self.flop_per_s, moved_bytes / self.bytes_per_s)


def milliseconds(call: Callable[[], object], rounds: int = 20) -> float:
    """Median time of a call on the device, with the L2 cache emptied before each."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peaks() -> Peaks:
    """Measure the device."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = milliseconds(lambda: a @ b)
    source = torch.empty(2 * 2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source))
    return Peaks(2.0 * size**3 / product * 1e3, 2.0 * source.numel() / copy * 1e3)


def device() -> dict[str, object]:
    """What a result has to say about the GPU it comes from."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Processor time of one run."""
    began = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - began) / repeats
