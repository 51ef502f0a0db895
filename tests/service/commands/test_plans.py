"""The memory plans of installed models."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.spec.memory import DEVICE_GB
from service.commands.plans import memory_table
from service.jobs.job import TextToImage
from service.settings import Settings
from tests.support.tiny_towers import write_tiny_sd3


def test_a_row_for_each_model_that_is_whole(offline: list[TextToImage], sdxl_folder: Path) -> None:
    assert memory_table(Settings()) is None, "the one that is installed has no weights"
    table = memory_table(Settings(models=(sdxl_folder,)))
    assert table is not None and len(table.rows) == 1
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["tiny-xl"], *[["all stays"]] * len(DEVICE_GB)]


def test_below_it_stands_what_t5_in_8_bits_saves(
    offline: list[TextToImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_sd3(tmp_path / "tiny-sd3")
    monkeypatch.setattr("service.commands.plans.DEVICE_GB", (0.00102,))
    for t5, title, cell, verb in (
        ("full", "memory plan, 16 bits", "encoders leave after use; T5 in 8 bits: all stays", "would save"),
        ("8bit", "memory plan, 16 bits, T5 in 8", "all stays", "saves"),
    ):
        table = memory_table(Settings(models=(tmp_path,), t5=t5))
        assert table is not None
        assert [column.header for column in table.columns] == [title, "0.00102 GB"]
        assert [list(column.cells) for column in table.columns] == [["tiny-sd3"], [cell]]
        assert table.caption == f"T5 in 8 bits (DARKROOM_T5=8bit) {verb} 0.0 GB of tiny-sd3"


def test_no_models_no_table(offline: list[TextToImage]) -> None:
    assert memory_table(Settings(models=(Path("/nowhere"),))) is None
