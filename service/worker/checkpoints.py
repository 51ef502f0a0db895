"""Checkpoints of jobs: when one is due, and what is in it.

A file holds the states of a job's pieces as tensors, and in its header whose they are: the job, the numerics id under
which they were made, the line of each row, and a hash of what each is conditioned on. Everything else a worker makes
again from the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.families.row import Checkpoint
from service.jobs.job import Result
from service.worker.piece import Snapshot

EVERY_S = 5.0
"""Work of a job that may be lost with its worker, seconds of the device."""
MOST_SHARE = 0.01
"""Of a job's work, that may be spent on its checkpoints."""
FIRST_GUESS_S = 0.02
_HEADER = "darkroom"
_VERSION = 1

Entry = Snapshot | Result | None
"""A piece on its way, one that is stored, or one that has not begun."""


@dataclass(frozen=True)
class JobCheckpoint:
    """What a checkpoint file says."""

    job: str
    numerics_id: str
    pieces: tuple[Entry, ...]


class Pace:
    """When a checkpoint is due: after so much work that it costs at most a hundredth of it, and never sooner than every
    five seconds of work. Shorter jobs have none, since to make them again costs less than to care."""

    def __init__(self) -> None:
        self._cost_s = FIRST_GUESS_S

    def due(self, work_s: float) -> bool:
        """Whether, after so many seconds of work since the last one."""
        return work_s >= max(EVERY_S, self._cost_s / MOST_SHARE)

    def took(self, seconds: float) -> None:
        """Learn what one cost."""
        self._cost_s = (self._cost_s + seconds) / 2


def pack(job_id: str, numerics_id: str, pieces: Sequence[Entry]) -> bytes:
    """The file of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    header: list[dict[str, object]] = []
    for i, piece in enumerate(pieces):
        if isinstance(piece, Result):
            header.append({"result": piece.model_dump(mode="json")})
        elif piece is None:
            header.append({})
        else:
            header.append({"line": piece.row and piece.row.line, "conditions": piece.conditions})
            if piece.row is not None:
                tensors[f"{i}/state"] = piece.row.state.contiguous()
            if piece.frames is not None:
                tensors[f"{i}/frames"] = torch.from_numpy(piece.frames)
    about = {"version": _VERSION, "job": job_id, "numerics_id": numerics_id, "pieces": header}
    return save(tensors, metadata={_HEADER: json.dumps(about)})


def unpack(content: bytes) -> JobCheckpoint:
    """What :func:`pack` wrote.

    Raises:
        ValueError: it is no checkpoint, or one of another version.
    """
    try:
        tensors = load(content)
        about = json.loads(_metadata(content)[_HEADER])
        if about["version"] != _VERSION:
            raise ValueError(f"a checkpoint of version {about['version']}, expected {_VERSION}")
        pieces = tuple(_entry(piece, i, tensors) for i, piece in enumerate(about["pieces"]))
        return JobCheckpoint(about["job"], about["numerics_id"], pieces)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a checkpoint: {error!r}") from error


def _metadata(content: bytes) -> dict[str, str]:
    """The header's free part. The library shows it of files only, so it is read as the format says: eight bytes of
    length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found


def _entry(about: dict[str, object], index: int, tensors: dict[str, Tensor]) -> Entry:
    if "result" in about:
        return Result.model_validate(about["result"])
    if "conditions" not in about:
        return None
    frames, line = tensors.get(f"{index}/frames"), about["line"]
    row = Checkpoint(tensors[f"{index}/state"], line) if isinstance(line, int) else None
    return Snapshot(str(about["conditions"]), row, None if frames is None else frames.numpy())
