"""What the tests of models share: one thread, how to compare, and the published pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from tests.support.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def relative() -> Callable[[Tensor, Tensor], float]:
    """(result, expected) -> largest difference in units of the expected tensor's root mean square."""

    def error(result: Tensor, expected: Tensor) -> float:
        assert result.shape == expected.shape
        return float((result - expected).abs().max() / expected.square().mean().sqrt())

    return error


@pytest.fixture(scope="session")
def published(sdxl_folder: Path) -> StableDiffusionXLPipeline:
    """The published pipeline on ``sdxl_folder``. Its scheduler may be replaced; its networks are shared."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
