"""Servers: one for each back end that the tests share, and a way to start one of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

TIMEOUT_S = 400
"""Of one test: the first one also waits for the export of the model, and cores may be busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time than others."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def run(folder: Path, model: Path, engines: Path, backend: str) -> Iterator[ServerProcess]:
    with ServerProcess(folder / "data", model, engines, backend) as server:
        yield server


@pytest.fixture(scope="session")
def onnx_server(
    tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path, sdxl_engines: Path
) -> Iterator[ServerProcess]:
    """The default back end."""
    yield from run(tmp_path_factory.mktemp("onnxruntime"), sdxl_folder, sdxl_engines, "onnxruntime")


@pytest.fixture(scope="session")
def torch_server(
    tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path, sdxl_engines: Path
) -> Iterator[ServerProcess]:
    """Torch, where deterministic rows are padded to batches of a constant size."""
    yield from run(tmp_path_factory.mktemp("torch"), sdxl_folder, sdxl_engines, "torch")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The models of the project, as `make serve` starts them."""
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "engines").mkdir()
    with ServerProcess(folder / "data", None, folder / "engines") as server:
        yield server


@pytest.fixture(params=["onnx_server", "torch_server"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    """Both back ends in turn."""
    found: ServerProcess = request.getfixturevalue(request.param)
    return found
