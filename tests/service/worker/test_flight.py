"""The books: which pictures are in flight, whose they are, and how far."""

from __future__ import annotations

from service.jobs.job import Job, JobState, Lease, Result
from service.worker.batch import Stage
from service.worker.flight import ActiveJob, Flight
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.runner import Runner
from tests.support.rig import make_request


def board(
    flight: Flight, loaded: LoadedModel, name: str, n: int = 1, steps: int = 4
) -> tuple[ActiveJob, list[Picture]]:
    request = make_request(n=n, num_inference_steps=steps)
    record = Job(id=name, request=request, state=JobState.RUNNING, created_at=5.0)
    job = ActiveJob(Lease(id=f"lease-{name}", job=record, expires_at=99.0))
    pictures = [Picture(request, request.seed + i, record.created_at, loaded, loaded.strict) for i in range(n)]
    flight.board(job, pictures)
    return job, pictures


def test_every_picture_has_a_row_of_its_own(loaded: LoadedModel) -> None:
    flight = Flight()
    first, _ = board(flight, loaded, "a", n=2)
    second, _ = board(flight, loaded, "b")
    assert len(flight) == 3 and flight.jobs == {"a": first, "b": second}
    items = flight.items()
    assert len({item.row for item in items}) == 3
    assert {(item.key.stage, item.arrived_at, item.lanes) for item in items} == {(Stage.ENCODE, 5.0, 1)}
    seats = flight.seats(item.row for item in items)
    assert [(seat.job.id, seat.index, seat.piece.seed) for seat in seats] == [("a", 0, 7), ("a", 1, 8), ("b", 0, 7)]
    assert first.results == [None, None]


def test_rows_are_never_used_twice(loaded: LoadedModel) -> None:
    flight = Flight()
    board(flight, loaded, "a")
    (before,) = flight.items()
    flight.drop("a")
    board(flight, loaded, "b")
    (after,) = flight.items()
    assert after.row != before.row and flight.seats([before.row]) == []


def test_a_dropped_job_returns_what_was_in_flight(loaded: LoadedModel) -> None:
    flight = Flight()
    _, pictures = board(flight, loaded, "a", n=2)
    board(flight, loaded, "b")
    flight.leave(flight.items()[0].row)
    assert flight.drop("a") == pictures[1:]
    assert set(flight.jobs) == {"b"} and len(flight) == 1
    assert flight.drop("a") == [] == flight.drop("unknown")


def test_a_job_is_as_far_as_its_average_picture(loaded: LoadedModel) -> None:
    flight, runner = Flight(), Runner()
    job, pictures = board(flight, loaded, "a", n=2, steps=4)
    board(flight, loaded, "b")
    assert flight.steps(job) == (0, 4)
    runner.encode(pictures)
    for done in (0, 1, 1, 2):
        runner.denoise(pictures[:1])
        assert flight.steps(job) == (done, 4)
    first, second, _ = flight.items()
    flight.leave(first.row)
    assert flight.steps(job) == (2, 4), "what is decoded counts as done"
    runner.denoise(pictures[1:])
    runner.denoise(pictures[1:])
    assert flight.steps(job) == (3, 4)
    flight.leave(second.row)
    assert flight.steps(job) == (4, 4)


def test_ended_jobs_are_forgotten_with_their_pictures(loaded: LoadedModel) -> None:
    flight = Flight()
    ended, _ = board(flight, loaded, "a", n=2)
    board(flight, loaded, "b")
    ended.results[0] = Result(content_sha256="0", media_type="image/png", seed=0, numerics_id="n")
    flight.forget_ended()
    assert set(flight.jobs) == {"a", "b"}
    ended.ended = True
    flight.forget_ended()
    assert set(flight.jobs) == {"b"} and len(flight) == 1
