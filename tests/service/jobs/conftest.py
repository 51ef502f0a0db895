"""Stores under test. A new store joins the contract suite by a line in BACKENDS."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.jobs.job import TextToImage
from service.jobs.redis import RedisStore
from service.jobs.sqlite import SQLiteStore
from service.jobs.store import JobStore
from tests.service.jobs.redis_server import Durability, RedisServer

ROOT = Path(__file__).parents[3]


class FakeClock:
    """Unix seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Backend:
    """One store implementation: how to open it here, and the Python text that opens it in another process."""

    name: str
    open: Callable[[Path, Callable[[], float], int], JobStore]
    source: Callable[[Path], str]


SQLITE = Backend(
    name="sqlite",
    open=lambda folder, clock, max_queued: SQLiteStore(folder / "jobs.db", max_queued, clock),
    source=lambda folder: (
        f"from service.jobs.sqlite import SQLiteStore\nstore = SQLiteStore({str(folder / 'jobs.db')!r})\n"
    ),
)


_SERVERS: dict[Durability, RedisServer] = {}


def server(durability: Durability) -> RedisServer:
    """One server a session; stores in different folders share it under different names."""
    if durability not in _SERVERS:
        _SERVERS[durability] = RedisServer(Path(tempfile.mkdtemp(prefix="redis-")), durability)
    return _SERVERS[durability]


def namespace(folder: Path) -> str:
    """What stores of this folder call themselves on a shared server."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def on_redis(durability: Durability) -> Backend:
    """Stores on a server with this log."""

    def source(folder: Path) -> str:
        url, name = server(durability).url, namespace(folder)
        return f"from service.jobs.redis import RedisStore\nstore = RedisStore({url!r}, namespace={name!r})\n"

    return Backend(
        name=f"redis-{durability}",
        open=lambda folder, clock, max_queued: RedisStore(server(durability).url, max_queued, clock, namespace(folder)),
        source=source,
    )


EVERYSEC, ALWAYS = on_redis("everysec"), on_redis("always")


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    """Stop the servers that were started."""
    yield
    for running in _SERVERS.values():
        running.remove()


@pytest.fixture(params=(SQLITE, EVERYSEC, ALWAYS), ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every store."""
    found = request.param
    assert isinstance(found, Backend)
    return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(backend: Backend, tmp_path: Path, clock: FakeClock) -> Iterator[JobStore]:
    opened = backend.open(tmp_path, clock, 1000)
    yield opened
    opened.close()


@pytest.fixture
def picture() -> Callable[..., TextToImage]:
    """Requests that differ in what is named."""

    def make(**changes: object) -> TextToImage:
        fields: dict[str, object] = {
            "model": "tiny",
            "prompt": "a lighthouse",
            "width": 64,
            "height": 64,
            "num_inference_steps": 4,
            "guidance_scale": 5.5,
            "scheduler": "euler",
            "seed": 7,
        }
        return TextToImage.model_validate(fields | changes)

    return make


@pytest.fixture
def spawn() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start Python text in another process, with its stdin and stdout; whatever still runs at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def start(text: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(
            [sys.executable, "-c", text], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
