"""A real `darkroom serve` in a process of its own, with its worker, to be used, signalled, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.status import WorkerStatus, read_status

ROOT = Path(__file__).resolve().parents[2]
READY_S = 120.0
"""Idle machines need a few seconds; busy ones import torch for a minute."""
LOG_LINES = 40


class ServerProcess:
    """A server on a free port. As a context it is started, waited for, and in the end killed if it still runs.

    Args:
        data: its data folder, which outlives it.
        model: the one model folder it serves; None for the shipped models.
        engines: an engine cache that holds that model's networks.
        backend: ``onnxruntime`` or ``torch``.
        torch: whether the server's process finds torch; those of :meth:`work` always do.
        settings: more of them, by field.
    """

    def __init__(
        self,
        data: Path,
        model: Path | None,
        engines: Path,
        backend: str = "onnxruntime",
        torch: bool = True,
        **settings: str,
    ) -> None:
        self.data, self.backend, self._torch = data, backend, torch
        data.mkdir(parents=True, exist_ok=True)
        if not (data / "engines").exists():
            (data / "engines").symlink_to(engines)
        self.log = data / "server.log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")},
            "PYTHONPATH": str(ROOT),
            "DARKROOM_BACKEND": backend,
            "DARKROOM_ENGINES": "cached",
            "DARKROOM_THREADS": "1",
            **{f"DARKROOM_{name.upper()}": value for name, value in settings.items()},
        }
        if model is not None:
            self._environment["DARKROOM_MODELS"] = str(model)
            self._environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "support" / "no_zoo"), str(ROOT)])
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.http = httpx.Client()

    def __enter__(self) -> ServerProcess:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        status = read_status(self.data / "worker.json")
        if self.process is not None and self.process.poll() is None and status is not None and status.alive:
            os.kill(status.pid, signal.SIGKILL)  # nobody waits for its last batch
        self.kill()
        if error is not None:
            error.add_note(self.tail())

    def start(self) -> None:
        """Start it and wait until it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data", str(self.data)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._own_environment(), cwd=ROOT, stdout=log, stderr=log)
        self.http.close()
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=120.0)
        self.until(self.ready, READY_S)

    def _own_environment(self) -> dict[str, str]:
        if self._torch:
            return self._environment
        path = os.pathsep.join([str(ROOT / "tests" / "support" / "no_torch"), self._environment["PYTHONPATH"]])
        return {**self._environment, "PYTHONPATH": path}

    def ready(self) -> bool:
        """Whether it says so."""
        assert self.process is not None and self.process.poll() is None, f"the server ended\n{self.tail()}"
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def until(self, holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until something holds."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, f"it never came to hold\n{self.tail()}"
            time.sleep(0.02)

    def tail(self) -> str:
        """The last lines of its log and its worker's."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- {self.log}", *lines[-LOG_LINES:]])

    @property
    def worker(self) -> WorkerStatus:
        """What its worker last said of itself."""
        status = read_status(self.data / "worker.json")
        assert status is not None, f"no worker has reported\n{self.tail()}"
        return status

    def terminate(self) -> int:
        """End it with SIGTERM; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs, and wait until its worker has noticed."""
        self.http.close()
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        worker = read_status(self.data / "worker.json")
        end = time.monotonic() + 30.0
        while worker is not None and worker.alive:
            assert time.monotonic() < end, f"the worker is an orphan\n{self.tail()}"
            time.sleep(0.02)

    def work(self, data: Path) -> subprocess.Popen[bytes]:
        """One more worker, with the same settings and this data folder: one of its own, or the server's if that keeps
        none. Who starts it ends it."""
        data.mkdir(exist_ok=True)
        if not (data / "engines").exists():
            (data / "engines").symlink_to((self.data / "engines").resolve())
        command = [sys.executable, "-m", "service.cli", "worker", "--data", str(data)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=self._environment, cwd=ROOT, stdout=log, stderr=log)

    def submit(self, **body: Any) -> str:
        """Post a job; returns its id."""
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as clients see it."""
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").json()
        return found

    def finished(self, job_ids: Iterable[str], timeout_s: float = 90.0) -> list[dict[str, Any]]:
        """Wait until all of these jobs have ended; they must have completed."""
        jobs = []
        for job_id in job_ids:
            self.until(lambda job_id=job_id: self.job(job_id)["finished_at"] is not None, timeout_s)  # type: ignore[misc]
            jobs.append(self.job(job_id))
        assert [job["state"] for job in jobs] == ["completed"] * len(jobs), [job["error"] for job in jobs]
        return jobs

    def hashes(self, job_ids: Iterable[str]) -> list[list[str]]:
        """Hashes of the pictures of these jobs, in order, waiting for them."""
        return [[result["content_sha256"] for result in job["results"]] for job in self.finished(job_ids)]

    def together(self, bodies: Iterable[dict[str, Any]]) -> list[str]:
        """Post jobs that all wait before the worker sees the first: it is held meanwhile."""
        pid = self.worker.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            return [self.submit(**body) for body in bodies]
        finally:
            os.kill(pid, signal.SIGCONT)

    def settle(self) -> None:
        """Wait until the worker has written its metrics anew."""
        path, now = self.data / "worker.prom", time.time()
        self.until(lambda: path.exists() and path.stat().st_mtime > now)

    def metric(self, name: str, **labels: str) -> float:
        """A metric of the server or its worker; 0 when it is not there."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
