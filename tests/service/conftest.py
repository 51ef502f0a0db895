"""Commands without a server: one model is installed, and a stand-in makes the pictures."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.job import TextToImage
from service.settings import Settings
from tests.service.api.conftest import write_model


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TextToImage]:
    """No server answers, one model is installed, and a stand-in makes the pictures; the list is what it was asked."""
    write_model(tmp_path / "zoo" / "tiny")
    monkeypatch.setattr("service.settings.ZOO", tmp_path / "zoo")
    monkeypatch.setenv("DARKROOM_PORT", "1")
    monkeypatch.setenv("DARKROOM_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    asked: list[TextToImage] = []

    def generate(settings: Settings, request: TextToImage, on_step: Callable[[int, int], None]) -> bytes:
        del settings
        asked.append(request)
        on_step(1, request.num_inference_steps)
        return b"picture"

    local = types.ModuleType("service.worker.local")
    local.generate = generate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "service.worker.local", local)
    return asked
