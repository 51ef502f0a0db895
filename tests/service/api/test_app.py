"""The wiring: what it imports, how fast it starts, what it offers."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.service.api.conftest import Server


def test_schema_is_served(shared: Server) -> None:
    paths = shared.http.get("/openapi.json").json()["paths"]
    assert {"/v1/images/generations", "/v1/jobs", "/v1/models"} <= set(paths)


def test_no_torch_and_a_quick_start() -> None:
    code = "import sys, service.api.serve; sys.exit(any(m in sys.modules for m in ('torch', 'onnxruntime')))"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    # 2 s on an idle machine; tests share theirs with others.
    assert time.monotonic() - began < 6
