"""What a worker says about itself in a small file, for the API's readiness and for whoever looks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError


class WorkerStatus(BaseModel):
    """State of the worker process ``pid``."""

    model_config = ConfigDict(frozen=True)

    pid: int
    state: Literal["starting", "ready", "stopping"]
    models: tuple[str, ...] = ()
    """Models whose networks are loaded."""
    seconds_per_job: dict[str, float] = {}
    """By model: how long the worker is busy for one more job of the usual kind, among those it runs together."""

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this still exists."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def write(self, path: Path) -> None:
        """Replace the file at once, so that a reader sees the old or the new state and nothing between."""
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(self.model_dump_json(), encoding="utf-8")
        part.replace(path)


def read_status(path: Path) -> WorkerStatus | None:
    """The last state a worker wrote; None when there is none that can be read."""
    try:
        return WorkerStatus.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
