"""The tiny SDXL folder's networks, exported once for every test here, and one graph of half precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.cache import EngineCache
from engines.export import export
from engines.networks import networks_of
from engines.prepare import Engines, prepare


@pytest.fixture(scope="session")
def cache(sdxl_engines: Path) -> EngineCache:
    return EngineCache(sdxl_engines)


@pytest.fixture(scope="session")
def engines(sdxl_folder: Path, cache: EngineCache) -> Engines:
    return prepare(sdxl_folder, cache, threads=1)


@pytest.fixture(scope="session")
def half_decoder(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder in fp16."""
    network = networks_of(sdxl_folder)["vae/decoder"]
    return export(network.load(), network.signature, tmp_path_factory.mktemp("half"), "fp16")
