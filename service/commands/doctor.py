"""``darkroom doctor``: what is here, and what is missing, before a server is started or when one misbehaves."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from service.commands.plans import memory_table
from service.commands.terminal import DataOption, answers, read_settings

if TYPE_CHECKING:
    from service.settings import Settings

EXTRAS: dict[str, tuple[str, ...]] = {
    "worker": ("torch", "onnxruntime", "transformers"),
    "redis": ("redis", "hiredis"),
    "s3": ("fsspec", "s3fs"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
"""What an extra is for, by the packages that are looked for."""
LEAST_FREE_BYTES = 2**30
"""With less the disk of jobs and pictures is as good as full."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "note", "fault"]
    """A note is worth knowing, with a fault a server or worker does not run here."""
    subject: str
    text: str


def doctor(data: DataOption = None) -> None:
    """Look at packages, hardware, store, models and server; ends with 1 if something is wrong."""
    from rich.console import Console
    from rich.table import Table

    settings = read_settings(data=data)
    table = Table("", "", "", show_header=False)
    colours = {"ok": "green", "note": "yellow", "fault": "red"}
    console, faults = Console(), 0
    with console.status("looking"):
        for finding in examine(settings):
            faults += finding.level == "fault"
            table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", finding.subject, finding.text)
    console.print(table)
    if (plans := memory_table(settings)) is not None:
        console.print(plans)
    if faults:
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything there is to say, the machine first."""
    yield from _packages()
    yield _processor(settings)
    yield _memory()
    yield _gpu()
    yield _networks(settings)
    yield _disk(settings.data)
    yield _store(settings)
    yield _bus(settings)
    yield _artifacts(settings)
    yield from _models(settings)
    yield _engines(settings)
    yield from _server(settings)


def _packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    def found(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    yield Finding("ok", "darkroom", f"{found('darkroom') or 'not installed'} on Python {platform.python_version()}")
    for extra, names in EXTRAS.items():
        versions = {name: found(name) for name in names}
        missing = [name for name, there in versions.items() if there is None]
        if missing:
            text = f"missing {', '.join(missing)}: pip install 'darkroom[{extra}]'"
            yield Finding("note", f"extra {extra}", text)
        else:
            yield Finding("ok", f"extra {extra}", ", ".join(f"{name} {there}" for name, there in versions.items()))


def _processor(settings: Settings) -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    level: Literal["ok", "note"] = "note" if settings.threads > usable else "ok"
    return Finding(level, "processor", f"{usable} cores, {settings.threads} for one operation of the worker")


def _memory() -> Finding:
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return Finding("note", "memory", "this system does not say")
    return Finding("ok", "memory", f"{_gib(whole)}, of which {_gib(free)} unused")


def _gpu() -> Finding:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return Finding("note", "GPU", "none, or no driver: models run on the processor")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return Finding("fault", "GPU", "nvidia-smi does not answer: the driver hangs")
    if done.returncode:
        return Finding("fault", "GPU", f"nvidia-smi: {(done.stderr or done.stdout).strip()}")
    return Finding("ok", "GPU", "; ".join(done.stdout.strip().splitlines()))


def _networks(settings: Settings) -> Finding:
    """Where the worker would run networks, in which precision and by what."""
    try:
        from kernels.backend import read_switches
        from service.worker.placement import device_name, placement, weights_limit
        from service.worker.upgrades import check_backend
    except ImportError as error:
        return Finding("note", "networks", f"no worker can run here: {error}")
    try:
        place, switches = placement(settings), read_switches(settings.kernels)
        check_backend(settings, place)
    except ValueError as error:
        return Finding("fault", "networks", str(error))
    if not place.on_gpu:
        return Finding("ok", "networks", f"on the processor, {place.precision}, {settings.backend}")
    kernels = ", ".join(f"{op}={backend}" for op, backend in switches.items()) or "as measured"
    graphs, limit = "CUDA graphs" if settings.graphs else "no CUDA graphs", weights_limit(place, settings.memory_bytes)
    memory = f"up to {_gib(limit)} of weights"
    by = f"plans of {settings.backend} and torch" if settings.backend.startswith("tensorrt") else "torch"
    where = f"on {place.device} ({device_name(place.device)}), {place.precision}, {by}"
    text = f"{where}, kernels {kernels}, {graphs}, {memory}"
    return Finding("ok", "networks", text)


def _disk(data: Path) -> Finding:
    there = next(path for path in (data, *data.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("fault", "data", f"{there} cannot be written")
    free = shutil.disk_usage(there).free
    return Finding("fault" if free < LEAST_FREE_BYTES else "ok", "data", f"{data}, {_gib(free)} free")


def _store(settings: Settings) -> Finding:
    from contextlib import closing

    from service.errors import Unavailable
    from service.jobs.open import open_store

    try:
        with closing(open_store(settings.store_url, settings.max_queued)) as store:
            stats = store.stats()
    except (OSError, RuntimeError, ValueError, Unavailable) as error:
        return Finding("fault", "store", f"{_shown(settings.store_url)}: {error}")
    return Finding("ok", "store", f"{_shown(settings.store_url)}: {stats.queued} queued, {stats.running} running")


def _bus(settings: Settings) -> Finding:
    from service.jobs.bus import Bus

    try:
        Bus(settings.bus_address).close()
    except (OSError, ImportError, ValueError) as error:
        return Finding("fault", "bus", f"{_shown(settings.bus_address)}: {error}")
    return Finding("ok", "bus", _shown(settings.bus_address))


def _artifacts(settings: Settings) -> Finding:
    from service.jobs.artifacts import ArtifactStore

    try:
        artifacts = ArtifactStore(settings.artifacts_address)
        # It is of no job, so retention deletes it.
        artifacts.open(artifacts.put(b"darkroom doctor"))
    except (OSError, KeyError, ValueError) as error:
        return Finding("fault", "artifacts", f"{settings.artifacts_address}: {error}")
    return Finding("ok", "artifacts", f"{settings.artifacts_address}: written and read")


def _models(settings: Settings) -> Iterator[Finding]:
    from service.settings import installed_models

    try:
        models = installed_models(settings)
    except ValueError as error:
        yield Finding("fault", "models", str(error))
        return
    yield Finding("ok" if models else "fault", "models", ", ".join(models) or "none is installed")


def _engines(settings: Settings) -> Finding:
    files = [path for path in settings.engines_path.rglob("*") if path.is_file()]
    if not files:
        return Finding("note", "engines", "none yet: the first start makes them, or `darkroom engines build --all`")
    size = sum(path.stat().st_size for path in files)
    return Finding("ok", "engines", f"{settings.engines_path}: {_gib(size)}")


def _server(settings: Settings) -> Iterator[Finding]:
    from service.status import read_status

    if answers(settings.url):
        yield Finding("ok", "server", f"answers at {settings.url}")
    else:
        yield Finding("note", "server", f"none at {settings.url}")
    status = read_status(settings.worker_status_path)
    if status is None:
        yield Finding("note", "worker", "none with this data folder")
    elif not status.alive:
        yield Finding("note", "worker", f"process {status.pid} has died")
    else:
        yield Finding("ok", "worker", f"process {status.pid} is {status.state}, with {', '.join(status.models) or '-'}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _shown(url: str) -> str:
    """Without the password."""
    head, at, rest = url.rpartition("@")
    return f"{head.partition('://')[0]}://...@{rest}" if at and "://" in head else url
