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
from urllib.parse import quote

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.spec.model import ModelSpec, find_models
from service.jobs.retention import Retention

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
    """Folder of what this machine keeps: compiled engines and the state of its worker, and jobs and pictures unless the
    next three fields put them elsewhere. A server and each further worker have one of their own."""
    store: str = ""
    """Where jobs are: ``sqlite:///path`` for one machine, ``redis://host:6379/0`` for several; empty: a file in
    ``data``."""
    bus: str = ""
    """Where processes tell each other of jobs: a folder, or the URL of a Redis server; empty: a folder in
    ``data``, or the server that the store is on."""
    artifacts: str = ""
    """Where finished pictures are: a folder that all machines share, or a URL such as ``s3://bucket/prefix``; empty: a
    folder in ``data``. It belongs to one store: what no job of that store refers to is deleted."""
    retention_s: float = Field(default=7 * 86400.0, ge=0, allow_inf_nan=False)
    """Ended jobs and their pictures are deleted after this time; 0: never."""
    retention_bytes: int = Field(default=0, ge=0)
    """While pictures take more, the jobs that ended first are deleted; 0: no limit."""
    models: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders with further models, separated like PATH; the shipped ones are always there."""
    loras_path: Path | None = None
    """Folder of adapters (LoRA), ``NAME.safetensors`` each; requests name them."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """SHA-256 of every API key, in hex, separated by commas; without any, everybody may use ``/v1``."""
    max_upload_bytes: int = Field(default=32 * 2**20, ge=2**20)
    """A request with pictures may have so many; any other has a megabyte."""
    workers: int = Field(default=1, ge=0, le=1)
    """Workers that a server keeps. 0: it serves the API alone, without torch, and its workers are started elsewhere."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where networks run: ``cpu``, ``cuda`` or ``cuda:N``; ``auto``: the first GPU that torch sees, else the
    processor."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of networks on torch; ``auto``: bf16 on a GPU, or fp16 on one that has no bf16, and fp32 on the processor."""
    t5: Literal["full", "8bit"] = "full"
    """T5, the largest text encoder of Stable Diffusion 3: in the precision of the others, or with most of its weights
    in 8 bits, which takes half of its memory and changes pictures a little."""
    kernels: str = ""
    """Which implementation ops run on a GPU, ``attention=torch,geglu=triton``; ops that are not named run the one that
    was measured to be faster."""
    graphs: bool = True
    """Whether steps on a GPU are captured as CUDA graphs and replayed."""
    backend: Literal["onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx"] = "onnxruntime"
    """What runs networks: ``onnxruntime`` or ``openvino`` in fp32 on the processor, ``tensorrt`` or ``tensorrt-rtx``
    on a GPU, and ``torch`` everywhere; what the named one does not run, torch does."""
    engines: Literal["auto", "wait", "background", "cached"] = "auto"
    """When engines are made that the cache lacks. ``wait``: a model is not ready before; ``background``: torch serves
    until they are built and were found to be right; ``cached``: never here, only by ``darkroom engines build``;
    ``auto``: on the processor shipped models that draw from text wait, others do not."""
    engines_bytes: int = Field(default=0, ge=0)
    """What compiled engines may take on disk: those that were used longest ago are deleted; 0: no limit."""
    memory_bytes: int = Field(default=0, ge=0)
    """What the weights of all networks in memory may take together: when another one is needed, those that were used
    longest ago make room; 0: seven tenths of the machine's memory, or on a GPU of what is free at the start."""
    host_bytes: int | None = Field(default=None, ge=0)
    """What networks that had to leave a GPU may take of the machine's memory, from where they come back fast; not set:
    half of what is free at the start."""
    threads: int = Field(default_factory=_half_the_cores, ge=1)
    """Threads that one operation of the worker may use. Half the cores: the other half serves requests, encodes
    pictures, and is usually the second hyper-thread of a core that arithmetic already fills."""
    max_queued: int = Field(default=256, ge=1)
    """Jobs that may wait; one more is answered 429."""
    metadata: bool = True
    """Whether files say what made them: model, prompt, seed and the rest of their request."""
    sync_timeout_s: float = Field(default=300.0, gt=0)
    """How long a synchronous request waits for its picture before it is told the job's address instead."""
    lease_s: float = Field(default=30.0, gt=0)
    """A worker that has not renewed its claim for so long is taken for dead."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("models", mode="before")
    @classmethod
    def _split_path(cls, value: object) -> object:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data", "loras_path", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # Server and worker need not share a working directory.
        return None if value is None else value.expanduser().absolute()

    @field_validator("models", mode="after")
    @classmethod
    def _absolute_each(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().absolute() for path in value)

    @field_validator("bus", "artifacts", mode="after")
    @classmethod
    def _absolute_folder(cls, value: str) -> str:
        return value if not value or "://" in value else str(Path(value).expanduser().absolute())

    @property
    def store_url(self) -> str:
        """The job store, as :func:`service.jobs.open.open_store` reads it."""
        return self.store or f"sqlite:///{quote(str(self.data / 'jobs.sqlite3'))}"

    @property
    def bus_address(self) -> str:
        """The bus: a folder or a URL."""
        return self.bus or (str(self.data / "bus") if self.store_url.startswith("sqlite:") else self.store)

    @property
    def artifacts_address(self) -> str:
        """The pictures: a folder or a URL."""
        return self.artifacts or str(self.data / "artifacts")

    @property
    def retention(self) -> Retention:
        """What is deleted and when. What no job refers to goes in any case."""
        return Retention(max_age_s=self.retention_s or None, max_bytes=self.retention_bytes or None)

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
        values["api_keys"] = ",".join(values["api_keys"])
        own = {f"DARKROOM_{name.upper()}": str(value) for name, value in values.items() if value is not None}
        # OpenMP threads that spin between operations steal the core from the API and from the encoder of pictures.
        openmp = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        quiet = {"SVT_LOG": "1"}  # the encoder of AV1 else writes lines of its own between those of the log
        return {**os.environ, **own, **openmp, **quiet}


def installed_models(settings: Settings) -> dict[str, ModelSpec]:
    """Every installed model by name. The first one is what a request gets that names none: those that draw from text
    lead, and among them the shipped ones.

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

    def place(model: tuple[str, ModelSpec]) -> tuple[bool, bool]:
        return model[1].system.task != "text-to-image", bool(model[1].needs)

    return dict(sorted(found.items(), key=place))


def installed_adapters(settings: Settings) -> dict[str, Path]:
    """Every adapter (LoRA) by name; looked up anew, so that one that is put into the folder can be used at once."""
    if settings.loras_path is None:
        return {}
    return {path.stem: path for path in sorted(settings.loras_path.glob("*.safetensors"))}


def worker_name(pid: int) -> str:
    """The name under which a worker process claims jobs.

    It holds the process id, so that a supervisor can return the jobs of the process that died and of no other.
    """
    return f"{socket.gethostname()}-{pid}"
