"""What pictures and clips have in common: snapshots, and what they are good for."""

from __future__ import annotations

from dataclasses import replace

import torch

from service.jobs.job import Priority
from service.worker.batch import Stage
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.piece import Snapshot, conditions_digest
from service.worker.runner import Runner
from tests.support.rig import denoised, make_request

REQUEST = make_request(scheduler="euler-ancestral", num_inference_steps=5)


def at_line(loaded: LoadedModel, line: int) -> Picture:
    made, runner = Picture(REQUEST, 7, 0.0, loaded, loaded.strict), Runner()
    runner.encode([made])
    for _ in range(line):
        runner.denoise([made])
    return made


def test_a_piece_goes_on_from_its_snapshot(loaded: LoadedModel) -> None:
    whole = denoised(loaded, REQUEST, 7)
    for line in (0, 2, 5):
        resumed, runner = Picture(REQUEST, 7, 0.0, loaded, loaded.strict), Runner()
        resumed.saved = at_line(loaded, line).snapshot()
        runner.encode([resumed])
        assert resumed.lines_done == line and resumed.saved is None
        while resumed.stage is Stage.DENOISE:
            runner.denoise([resumed])
        assert resumed.row is not None and whole.row is not None
        assert torch.equal(resumed.row.state[0], whole.row.state[0])


def test_a_snapshot_is_not_touched_by_what_follows(loaded: LoadedModel) -> None:
    made = at_line(loaded, 2)
    snapshot = made.snapshot()
    assert snapshot.row is not None
    before = snapshot.row.state.clone()
    Runner().denoise([made])
    assert torch.equal(snapshot.row.state, before) and snapshot.row.line == 2


def test_a_snapshot_of_other_conditions_is_not_used(loaded: LoadedModel) -> None:
    resumed = Picture(REQUEST, 7, 0.0, loaded, loaded.strict)
    resumed.saved = replace(at_line(loaded, 2).snapshot(), conditions="another's")
    Runner().encode([resumed])
    assert resumed.lines_done == 0


def test_before_it_is_encoded_there_is_nothing_to_keep(loaded: LoadedModel) -> None:
    made = Picture(REQUEST, 7, 0.0, loaded, loaded.strict)
    assert made.snapshot() == Snapshot("", None) and made.lines_done == made.steps_done == 0


def test_the_digest_knows_every_condition(loaded: LoadedModel) -> None:
    def digest(**changes: object) -> str:
        made = Picture(REQUEST.model_copy(update=changes), 7, 0.0, loaded, loaded.strict)
        Runner().encode([made])
        assert made.row is not None
        return conditions_digest(made.row)

    assert digest() == digest(seed=9)
    assert len({digest(), digest(prompt="a dog"), digest(negative_prompt="red"), digest(guidance_scale=1.0)}) == 4


def test_the_scheduler_is_told_how_urgent_it_is(loaded: LoadedModel) -> None:
    made = Picture(REQUEST, 7, 3.0, loaded, loaded.strict, priority=Priority.BATCH, deadline_at=9.0)
    item = made.item(4)
    assert (item.row, item.arrived_at, item.priority, item.deadline_at) == (4, 3.0, Priority.BATCH, 9.0)
