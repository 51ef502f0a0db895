"""What a server keeps: the promise, and in full on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth import Holding, measure, targets_of
from benchmarks.servers import Setup


def test_all_processes_count_together() -> None:
    before = [Holding("server 1", 100.0, 20, 4), Holding("worker 2", 300.0, 30, 6)]
    grown = [Holding("server 1", 110.0, 20, 4), Holding("worker 2", 307.0, 29, 6)]
    memory, handles = targets_of(before, grown)
    assert (memory.value, memory.met, handles.value, handles.met) == (17.0, False, -1, True)
    assert all(target.met for target in targets_of(before, before))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_keeps_nothing_of_what_it_has_done(sdxl_folder: Path, sdxl_engines: Path) -> None:
    found = targets_of(*measure(Setup(sdxl_folder, 1, sdxl_engines)))
    assert all(target.met for target in found), found
