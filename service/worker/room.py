"""Memory that was too small for a batch: how that is recognised, and what is remembered of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from service.worker.batch import BatchKey, Item

REMEMBERED_S = 300.0
"""Then larger batches are tried again: what took the memory may have gone."""
_SIGNS = (
    "out of memory", "not enough memory", "can't allocate memory", "failed to allocate memory", "bad allocation",
    "alloc_failed",
)  # fmt: skip
"""What torch's allocators, cuBLAS, cuDNN, ONNX Runtime and TensorRT say, none of which has an error class for it
everywhere."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory was too small."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def free_what_can_be_freed() -> None:
    """Give memory back that nobody uses: of cycles that the failed batch left, and of the accelerator's cache."""
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # refused while another thread captures a graph; what is cached is used again
            torch.cuda.empty_cache()


class Room:
    """Lanes for which the memory was too small, by batch key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: dict[BatchKey, tuple[int, float]] = {}

    def too_small(self, key: BatchKey, lanes: int) -> None:
        """Remember that a batch of so many lanes did not fit."""
        whole = self._whole(key)
        known, _ = self._limits.get(whole, (key.max_lanes, 0.0))
        self._limits[whole] = (max(1, min(known, lanes // 2)), self._clock() + REMEMBERED_S)

    def limited(self, item: Item) -> Item:
        """The same item, batched with fewer others where that is known to be needed."""
        if not self._limits:
            return item
        limit, until = self._limits.get(item.key, (item.key.max_lanes, 0.0))
        if until <= self._clock():
            self._limits.pop(item.key, None)
            return item
        return replace(item, key=replace(item.key, max_lanes=min(limit, item.key.max_lanes)))

    def _whole(self, key: BatchKey) -> BatchKey:
        """The key as it was before it was limited: one that differs in nothing else."""
        for known in self._limits:
            if replace(known, max_lanes=key.max_lanes) == key:
                return known
        return key
