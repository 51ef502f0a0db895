"""What every test runs under."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for a hub fails at once instead of hanging
os.environ["TOKENIZERS_PARALLELISM"] = (
    "false"  # else tokenizers warn in every process that was forked after one was used
)

# The machines that run this are busy: an example that takes long says nothing. CI must not fail by another draw.
settings.register_profile("darkroom", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("darkroom")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch  # only here: most runs collect no such test, and the import takes seconds

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL model folder of about 1 MB: two levels, two towers of different widths, pictures of 32 x 32."""
    from tests.support.tiny_xl import write_tiny_xl

    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    write_tiny_xl(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_engines(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine cache that holds ``sdxl_folder``'s networks."""
    from engines.cache import EngineCache
    from engines.prepare import build

    root = tmp_path_factory.mktemp("engines")
    build(sdxl_folder, EngineCache(root))
    return root
