"""Boarding: what a job brings along, and what it is refused for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.jobs.artifacts import ArtifactStore
from service.jobs.job import ImageToImage, Job, JobState, Lease, Priority, Result
from service.worker.boarding import Boarding, Refused
from service.worker.checkpoints import Entry, pack
from service.worker.flight import ActiveJob
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.residency import Residency
from service.worker.runner import Runner
from tests.support.rig import a_picture, make_clip, make_request, png

REQUEST = make_request(n=3)


class Gate:
    """Boarding for the tiny model, and jobs that want to board."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        self.loaded, self.artifacts = loaded, ArtifactStore(folder)
        self.residency = Residency({"tiny-xl": loaded.model.spec}, lambda _: loaded)
        self.boarding = Boarding(self.residency, self.artifacts)

    def take(self, request: Any, **changes: Any) -> tuple[ActiveJob, list[Piece | None] | Refused]:
        job = Job(id="job", request=request, state=JobState.RUNNING, created_at=5.0, **changes)
        self.boarding.take(Lease(id="lease", job=job, expires_at=99.0))
        end = time.monotonic() + 30
        while not (ready := self.boarding.ready()):
            assert time.monotonic() < end
            time.sleep(0.01)
        return ready[0]

    def saved(self, entries: list[Entry], numerics_id: str | None = None, job: str = "job") -> str:
        return self.artifacts.put(pack(job, numerics_id or self.loaded.strict.id, entries))

    def under_way(self) -> Entry:
        picture, runner = Picture(REQUEST, 8, 5.0, self.loaded, self.loaded.strict), Runner()
        runner.encode([picture])
        runner.denoise([picture])
        return picture.snapshot()

    def stored(self) -> Result:
        name = self.artifacts.put(b"a picture")
        return Result(content_sha256=name, media_type="image/png", seed=7, numerics_id=self.loaded.strict.id)


@pytest.fixture
def gate(tmp_path: Path, loaded: LoadedModel) -> Iterator[Gate]:
    gate = Gate(tmp_path, loaded)
    yield gate
    gate.boarding.close()
    gate.residency.close()


def pieces(boarded: list[Piece | None] | Refused) -> list[Piece | None]:
    assert not isinstance(boarded, Refused), boarded
    return boarded


def test_a_job_boards_with_all_its_pieces(gate: Gate) -> None:
    job, boarded = gate.take(REQUEST, priority=Priority.BATCH, deadline_at=9.0)
    found = [piece for piece in pieces(boarded) if piece is not None]
    assert [piece.seed for piece in found] == [7, 8, 9] and {piece.arrived_at for piece in found} == {5.0}
    assert {(piece.priority, piece.deadline_at) for piece in found} == {(Priority.BATCH, 9.0)}
    assert not gate.boarding.jobs and job.results == [None] * 3


def test_a_model_that_went_meanwhile(gate: Gate) -> None:
    _, refused = gate.take(make_request(model="gone"))
    assert isinstance(refused, Refused) and refused.code == "model_load_failed"
    assert str(refused) == "model 'gone' is not installed any more"
    _, boarded = gate.take(REQUEST)
    assert not isinstance(boarded, Refused)


def test_inputs_are_read(gate: Gate) -> None:
    name = gate.artifacts.put(png(a_picture()))
    same = REQUEST.model_dump(exclude={"task", "n"})
    _, boarded = gate.take(ImageToImage(**same, image=name, strength=0.5))
    (piece,) = pieces(boarded)
    assert piece is not None and piece.inputs.image is not None and np.array_equal(piece.inputs.image, a_picture())


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (ImageToImage(**REQUEST.model_dump(exclude={"task"}), image="0" * 64, strength=0.5), "input_unreadable", "not"),
        (make_clip("0" * 64, model="tiny-xl"), "input_unreadable", "is not there any more"),
    ],
)
def test_an_input_that_is_gone(gate: Gate, request_: Any, code: str, message: str) -> None:
    _, refused = gate.take(request_)
    assert isinstance(refused, Refused) and refused.code == code and message in str(refused)


def test_a_task_that_the_model_does_not_do(gate: Gate) -> None:
    _, refused = gate.take(make_clip(gate.artifacts.put(png(a_picture())), model="tiny-xl"))
    assert isinstance(refused, Refused) and refused.code == "request_unsupported" and "image-to-video" in str(refused)


def test_a_checkpoint_is_used(gate: Gate) -> None:
    stored = gate.stored()
    name = gate.saved([stored, gate.under_way(), None])
    job, boarded = gate.take(REQUEST, checkpoint=name)
    done, running, fresh = pieces(boarded)
    assert done is None and job.results == [stored, None, None] and job.checkpoint == name
    assert running is not None and running.saved is not None and fresh is not None and fresh.saved is None
    Runner().encode([running])
    assert running.lines_done == 1


def test_a_checkpoint_of_other_numerics_is_not(gate: Gate) -> None:
    job, boarded = gate.take(REQUEST, checkpoint=gate.saved([gate.stored(), gate.under_way(), None], "another's"))
    assert all(piece is not None and piece.saved is None for piece in pieces(boarded))
    assert job.results == [None] * 3 and job.checkpoint is None


@pytest.mark.parametrize("fault", ["gone", "garbage", "of another job", "of fewer pieces", "of a picture that is gone"])
def test_a_checkpoint_that_is_of_no_use(gate: Gate, fault: str) -> None:
    stored, running = gate.stored(), gate.under_way()
    gone = stored.model_copy(update={"content_sha256": "0" * 64})
    name = {
        "gone": lambda: "0" * 64,
        "garbage": lambda: gate.artifacts.put(b"garbage"),
        "of another job": lambda: gate.saved([stored, running, None], job="another"),
        "of fewer pieces": lambda: gate.saved([stored]),
        "of a picture that is gone": lambda: gate.saved([gone, running, None]),
    }[fault]()
    job, boarded = gate.take(REQUEST, checkpoint=name)
    assert all(piece is not None and piece.saved is None for piece in pieces(boarded)) and job.checkpoint is None


def test_a_job_that_was_dropped_does_not_board(gate: Gate) -> None:
    job = Job(id="job", request=REQUEST, state=JobState.RUNNING, created_at=5.0)
    gate.boarding.take(Lease(id="lease", job=job, expires_at=99.0))
    gate.boarding.drop("job")
    gate.residency.request("tiny-xl").result(30)
    assert gate.boarding.ready() == [] and gate.boarding.jobs == []
