"""Metrics and readiness of one worker over HTTP, for a worker that no server on its machine speaks for."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST

from service.status import read_status


def export(status_path: Path, metrics_path: Path, host: str, port: int) -> ThreadingHTTPServer:
    """Serve ``/metrics`` and ``/health/ready`` from the files that the worker writes, in a thread that ends with the
    process.

    Args:
        status_path: what the worker says of its state.
        metrics_path: what it counts, as text.
        host: address to listen on.
        port: 0 for any that is free.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, metrics_path.read_bytes() if metrics_path.exists() else b"")
            elif self.path == "/health/ready":
                status = read_status(status_path)
                ready = status is not None and status.alive and status.state == "ready"
                code = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(code, (status.state if status is not None else "starting").encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics and /health/ready")

        def _answer(self, code: HTTPStatus, content: bytes) -> None:
            self.send_response(code)
            self.send_header("content-type", CONTENT_TYPE_LATEST)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: a scraper comes every few seconds."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="exporter", daemon=True).start()
    return server
