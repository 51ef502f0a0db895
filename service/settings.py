"""Settings of one installation, and the only place that reads the environment.

Every field is the environment variable of its name with the prefix ``DARKROOM_``; ``darkroom serve`` hands the same
settings to its worker through :meth:`Settings.child_environment`.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.spec.model import ModelSpec, find_models

ZOO = Path(__file__).resolve().parent.parent / "models" / "zoo"
"""The models that ship with the project."""


def _half_the_cores() -> int:
    # The cores this process may use, not those of the machine: a container sees all of them and owns few.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


class Settings(BaseSettings):
    """Read once at the start of a process, checked there, and never changed."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    data: Path = Path("~/.local/share/darkroom")
    """Folder of everything that is kept: jobs, pictures, compiled engines."""
    models: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders with further models, separated like PATH; the shipped ones are always there."""
    backend: Literal["onnxruntime", "torch"] = "onnxruntime"
    threads: int = Field(default_factory=_half_the_cores, ge=1)
    """Threads that one operation of the worker may use. Half the cores: the other half serves requests, encodes
    pictures, and is usually the second hyper-thread of a core that arithmetic already fills."""
    max_queued: int = Field(default=256, ge=1)
    """Jobs that may wait; one more is answered 429."""
    sync_timeout_s: float = Field(default=300.0, gt=0)
    """How long a synchronous request waits for its picture before it is told the job's address instead."""
    lease_s: float = Field(default=30.0, gt=0)
    """A worker that has not renewed its claim for so long is taken for dead."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("models", mode="before")
    @classmethod
    def _split_path(cls, value: object) -> object:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("data", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Server and worker need not share a working directory.
        return value.expanduser().absolute()

    @field_validator("models", mode="after")
    @classmethod
    def _absolute_each(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().absolute() for path in value)

    @property
    def store_path(self) -> Path:
        """The job store's database."""
        return self.data / "jobs.sqlite3"

    @property
    def bus_path(self) -> Path:
        """Folder of the event sockets."""
        return self.data / "bus"

    @property
    def artifacts_path(self) -> Path:
        """Folder of finished pictures."""
        return self.data / "artifacts"

    @property
    def engines_path(self) -> Path:
        """Folder of compiled engines."""
        return self.data / "engines"

    @property
    def worker_status_path(self) -> Path:
        """Where the worker says whether it is ready."""
        return self.data / "worker.json"

    @property
    def worker_metrics_path(self) -> Path:
        """Where the worker leaves its metrics for the API's ``/metrics``."""
        return self.data / "worker.prom"

    @property
    def url(self) -> str:
        """Where a client on this machine finds the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def child_environment(self) -> dict[str, str]:
        """The environment in which a child process reads these same settings."""
        values = json.loads(self.model_dump_json())
        values["models"] = os.pathsep.join(values["models"])
        own = {f"DARKROOM_{name.upper()}": str(value) for name, value in values.items()}
        # OpenMP threads that spin between operations steal the core from the API and from the encoder of pictures.
        openmp = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        return {**os.environ, **own, **openmp}


def installed_models(settings: Settings) -> dict[str, ModelSpec]:
    """Every installed model by name. The first one is what a request gets that names none: the shipped ones lead.

    Raises:
        ValueError: a folder cannot be read or is not there, or two folders hold a model of one name.
    """
    found: dict[str, ModelSpec] = {}
    for folder in (ZOO, *settings.models):
        if folder != ZOO and not folder.is_dir():
            raise ValueError(f"model folder {folder} does not exist")
        single = (folder / "model_index.json").exists()
        for name, spec in ({folder.name: ModelSpec.read(folder)} if single else find_models(folder)).items():
            if name in found:
                raise ValueError(f"two models are named {name!r}: {found[name].folder} and {spec.folder}")
            found[name] = spec
    return found


def worker_name(pid: int) -> str:
    """The name under which a worker process claims jobs.

    It holds the process id, so that a supervisor can return the jobs of the process that died and of no other.
    """
    return f"{socket.gethostname()}-{pid}"
