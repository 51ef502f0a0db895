"""The random model folders that conditioners are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_towers


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all of them."""
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(scope="session")
def sd1_folder(folders: Path) -> Path:
    tiny_towers.write_tiny_sd(folders / "sd1", generation=1)
    return folders / "sd1"


@pytest.fixture(scope="session")
def sd2_folder(folders: Path) -> Path:
    tiny_towers.write_tiny_sd(folders / "sd2", generation=2)
    return folders / "sd2"


@pytest.fixture(scope="session")
def refiner_folder(folders: Path) -> Path:
    tiny_towers.write_tiny_refiner(folders / "refiner")
    return folders / "refiner"


@pytest.fixture(scope="session")
def sd3_folder(folders: Path) -> Path:
    tiny_towers.write_tiny_sd3(folders / "sd3")
    return folders / "sd3"


@pytest.fixture(scope="session")
def sd3_folder_without_t5(folders: Path) -> Path:
    tiny_towers.write_tiny_sd3(folders / "sd3-without-t5", t5=False)
    return folders / "sd3-without-t5"


@pytest.fixture(scope="session")
def svd_folder(folders: Path) -> Path:
    tiny_towers.write_tiny_svd(folders / "svd")
    return folders / "svd"
