"""The memory plans of installed models."""

from __future__ import annotations

from pathlib import Path

from models.spec.memory import DEVICE_GB
from service.commands.plans import memory_table
from service.jobs.job import TextToImage
from service.settings import Settings


def test_a_row_for_each_model_that_is_whole(offline: list[TextToImage], sdxl_folder: Path) -> None:
    assert memory_table(Settings()) is None, "the one that is installed has no weights"
    table = memory_table(Settings(models=(sdxl_folder,)))
    assert table is not None and len(table.rows) == 1
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["tiny-xl"], *[["all stays"]] * len(DEVICE_GB)]


def test_no_models_no_table(offline: list[TextToImage]) -> None:
    assert memory_table(Settings(models=(Path("/nowhere"),))) is None
