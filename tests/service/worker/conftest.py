"""The tiny model on torch, and a worker around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.spec.model import ModelSpec
from service.settings import Settings
from service.worker import loop
from service.worker.residency import LoadedModel, load_model
from tests.support.rig import Rig
from tests.support.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def loaded(sdxl_folder: Path) -> LoadedModel:
    """The tiny model on torch. Shared: tests that change a network replace it in a copy."""
    return load_model(ModelSpec.read(sdxl_folder), Settings(backend="torch", threads=1))


@pytest.fixture
def rig(tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A worker that does not wait when it is idle."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, loaded)
    yield rig
    rig.close()
