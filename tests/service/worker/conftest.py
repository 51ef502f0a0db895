"""The tiny model on torch, and a worker around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.families import image_to_video
from models.spec.model import ModelSpec
from service.settings import Settings
from service.worker import loop
from service.worker.loaded import LoadedModel
from service.worker.numerics import Numerics
from service.worker.opening import load_model
from tests.support.rig import Rig
from tests.support.threads import one_thread
from tests.support.tiny_towers import write_tiny_ldm_upscaler, write_tiny_svd, write_tiny_upscaler

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def loaded(sdxl_folder: Path) -> LoadedModel:
    """The tiny model on torch. Shared: tests that change a network replace it in a copy."""
    return load_model(ModelSpec.read(sdxl_folder), Settings(backend="torch", threads=1))


@pytest.fixture(scope="session")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny upscaler on torch, named ``tiny-upscaler``. Shared, as ``loaded`` is."""
    folder = tmp_path_factory.mktemp("upscaler") / "tiny-upscaler"
    write_tiny_upscaler(folder)
    return load_model(ModelSpec.read(folder), Settings(backend="torch", threads=1))


@pytest.fixture(scope="session")
def ldm_upscaler(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny upscaler of latent diffusion on torch, named ``tiny-upscaler`` too. Shared, as ``loaded`` is."""
    folder = tmp_path_factory.mktemp("ldm-upscaler") / "tiny-upscaler"
    write_tiny_ldm_upscaler(folder)
    return load_model(ModelSpec.read(folder), Settings(backend="torch", threads=1))


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny video model on torch: three frames of 32 x 32. Shared, as ``loaded`` is."""
    folder = tmp_path_factory.mktemp("video") / "tiny-svd"
    write_tiny_svd(folder)
    strict, fast = Numerics("clips-strict", 2, 2, True), Numerics("clips-fast", 0, 16, False)
    return LoadedModel(image_to_video.load(folder), strict, fast)


@pytest.fixture
def clips(tmp_path: Path, clip_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """As ``rig``, around the video model."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, clip_model)
    yield rig
    rig.close()


@pytest.fixture
def rig(tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A worker that does not wait when it is idle."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, loaded)
    yield rig
    rig.close()
