"""A short `make chaos` on the tiny model: the worker is killed and stopped, the disk full, the database locked."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.chaos import Chaos, targets_of, undisturbed
from benchmarks.faults import Faults
from tests.support.server import ServerProcess

BODIES = [
    {"prompt": "a red cat", "num_inference_steps": 10 + 10 * i, "scheduler": solver, "seed": i}
    for i, solver in enumerate(["euler", "euler-ancestral", "ddim", "dpm++2m"] * 2)
]


def test_no_job_is_lost(tmp_path: Path, sdxl_folder: Path, sdxl_engines: Path) -> None:
    with ServerProcess(tmp_path / "data", sdxl_folder, sdxl_engines, lease_s="2.0") as server:
        expected = undisturbed(server, BODIES)
        assert len({hashes[0] for hashes in expected}) == len(BODIES)
        run = Chaos(server, f"sqlite:///{server.data / 'jobs.sqlite3'}", BODIES, random.Random(1))
        run.run(40, Faults(server, 2.5), ["kill_worker", "fill_disk", "lock_database", "stop_worker"])
        verdict = run.judge(expected)
    assert len(run.log.bodies) == sum(verdict.states.values()) == 40
    assert all(target.met for target in targets_of(verdict)), verdict
    assert verdict.repeated > 0, "no fault reached a job"
    assert verdict.states["completed"] > 20 and len(run.log.faults) == 4 and run.log.disconnects == 1
