"""Memory that was too small: recognised, remembered, and tried again later."""

from __future__ import annotations

import pytest
import torch

from service.worker.batch import BatchKey, Item, Stage
from service.worker.room import REMEMBERED_S, Room, free_what_can_be_freed, out_of_memory


def key(tokens: int = 8) -> BatchKey:
    return BatchKey(Stage.DENOISE, "m", "unet", (4, 8, 8), tokens, "n", 16)


def item(tokens: int = 8) -> Item:
    return Item(1, key(tokens), 2, 5, 0.0)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
    ],
)
def test_what_says_so(error: Exception) -> None:
    assert out_of_memory(error)


def test_what_does_not() -> None:
    assert not out_of_memory(RuntimeError("shapes differ")) and not out_of_memory(ValueError("out of memory"))
    free_what_can_be_freed()


def test_a_limit_is_halved_and_forgotten() -> None:
    now = [0.0]
    room = Room(lambda: now[0])
    assert room.limited(item()) == item()
    room.too_small(key(), 12)
    assert room.limited(item()).key.max_lanes == 6 and room.limited(item(9)).key.max_lanes == 16
    room.too_small(room.limited(item()).key, 6)
    assert room.limited(item()).key.max_lanes == 3
    room.too_small(key(), 1)
    assert room.limited(item()).key.max_lanes == 1
    now[0] = REMEMBERED_S + 1
    assert room.limited(item()) == item()
