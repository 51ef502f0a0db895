"""The life of jobs in a worker: a real store and bus, the tiny model on torch, run tick by tick."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from service.jobs.job import JobState
from service.worker import leases, loop
from service.worker.loaded import LoadedModel
from tests.support.rig import NAME, Rig, alone, denoised, make_request, refuses

MIXED = [
    {"prompt": "a red cat", "num_inference_steps": 3, "scheduler": "euler", "guidance_scale": 5.0},
    {"prompt": "a dog", "num_inference_steps": 5, "scheduler": "euler-ancestral", "guidance_scale": 1.0, "seed": 8},
    {"prompt": "red", "num_inference_steps": 8, "scheduler": "dpm++2m", "guidance_scale": 7.5, "seed": 9},
    {"prompt": "cat dog", "num_inference_steps": 4, "scheduler": "ddim", "negative_prompt": "red", "seed": 10},
]


def in_denoiser(rig: Rig, calls: int) -> None:
    """Run until the UNet has been called so often."""
    rig.tick_until(lambda: len(rig.unet.batches) >= calls)


def test_a_job_from_submission_to_its_picture(rig: Rig) -> None:
    job = rig.submit()
    rig.finish(job)
    done = rig.get(job)
    assert done.state is JobState.COMPLETED and done.attempts == 1 and done.error is None
    (result,) = done.results
    assert result.media_type == "image/png" and result.seed == 7 and result.numerics_id == rig.loaded.strict.id
    assert rig.contents(job) == alone(rig.loaded, job.request)
    assert rig.value("darkroom_jobs_total", outcome="completed", reason="") == 1
    assert rig.value("darkroom_steps_total", use="useful") == 4 and rig.value("darkroom_steps_total", use="wasted") == 0
    assert rig.value("darkroom_batch_lanes_count", stage="denoise") == 4
    assert rig.value("darkroom_batch_lanes_sum", stage="denoise") == 8
    assert rig.value("darkroom_padded_lanes_total", stage="denoise") == 4 * (8 - 2)


def test_the_pictures_of_a_job_have_seeds_in_a_row(rig: Rig) -> None:
    job, single = rig.submit(n=3, seed=20), rig.submit(seed=21)
    rig.finish(job, single)
    assert [result.seed for result in rig.get(job).results] == [20, 21, 22]
    contents = rig.contents(job)
    assert contents == alone(rig.loaded, job.request)
    assert len(set(contents)) == 3 and rig.contents(single) == contents[1:2]


def test_a_job_that_is_not_strict_says_so(rig: Rig) -> None:
    job = rig.submit(deterministic=False)
    rig.finish(job)
    assert rig.get(job).results[0].numerics_id == rig.loaded.fast.id != rig.loaded.strict.id
    assert set(rig.unet.batches) == {2}


def test_different_requests_share_batches_and_keep_their_bytes(rig: Rig) -> None:
    jobs = [rig.submit(**changes) for changes in MIXED]
    rig.finish(*jobs)
    assert [rig.contents(job) for job in jobs] == [alone(rig.loaded, job.request) for job in jobs]
    assert len({rig.contents(job)[0] for job in jobs}) == len(jobs)
    assert rig.value("darkroom_batch_lanes_count", stage="denoise") < 3 + 5 + 8 + 4
    other_seed = make_request(**{**MIXED[0], "seed": 99})
    assert alone(rig.loaded, other_seed) != rig.contents(jobs[0])


def test_a_job_that_comes_while_another_runs_is_in_the_next_pass(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CLAIM_SHARE", 1e4)  # of a step of milliseconds, on a machine that may be busy
    first = rig.submit(num_inference_steps=50)
    in_denoiser(rig, 2)
    second = rig.submit(seed=8, num_inference_steps=2)
    rig.worker.tick()
    assert rig.get(second).state is JobState.RUNNING and rig.value("darkroom_pieces_in_flight") == 2
    rig.cancel(first)
    rig.finish(second)


def test_a_store_that_hangs_holds_up_a_part_of_one_pass(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CLAIM_SHARE", 0.25)
    first = rig.submit(num_inference_steps=50)
    in_denoiser(rig, 2)
    goes_on, claim = threading.Event(), rig.store.claim
    monkeypatch.setattr(rig.store, "claim", lambda *arguments: (goes_on.wait(60.0), claim(*arguments))[1])
    second = rig.submit(seed=8, num_inference_steps=2)
    before = len(rig.unet.batches)
    for _ in range(10):
        rig.worker.tick()
    assert len(rig.unet.batches) == before + 10 and rig.get(second).state is JobState.QUEUED
    goes_on.set()
    rig.finish(first, second)


@pytest.mark.parametrize("tell", [True, False])
def test_a_cancelled_job_runs_no_further_step(rig: Rig, monkeypatch: pytest.MonkeyPatch, tell: bool) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 1e9 if tell else 0.0)
    job = rig.submit(num_inference_steps=50)
    in_denoiser(rig, 5)
    rig.cancel(job, tell)
    steps = len(rig.unet.batches)
    for _ in range(5):
        rig.worker.tick()
    # Told on the bus it stops at once; else the next renewal finds out, which is under way beside the steps.
    assert len(rig.unet.batches) - steps <= (0 if tell else 3)
    assert rig.value("darkroom_steps_total", use="wasted") == len(rig.unet.batches)
    assert rig.get(job).state is JobState.CANCELLED and not rig.get(job).results


def test_a_cancelled_job_leaves_its_neighbours_alone(rig: Rig) -> None:
    kept, cancelled = rig.submit(num_inference_steps=10), rig.submit(num_inference_steps=50, seed=8)
    in_denoiser(rig, 5)
    rig.cancel(cancelled)
    rig.finish(kept)
    assert rig.contents(kept) == alone(rig.loaded, kept.request)


def test_a_picture_that_fails_alone_is_failed_and_its_batch_mates_are_not(rig: Rig, loaded: LoadedModel) -> None:
    rig.unet.before = refuses(rig.loaded, "poison")
    jobs = [rig.submit(**changes) for changes in MIXED]
    bad = rig.submit(prompt="poison", n=2)
    rig.finish(*jobs, bad)
    error = rig.get(bad).error
    assert error is not None and error.code == "denoise_failed" and error.message == "ArithmeticError: not this one"
    assert [rig.contents(job) for job in jobs] == [alone(loaded, job.request) for job in jobs]
    assert rig.value("darkroom_jobs_total", outcome="failed", reason="denoise_failed") == 1


def test_a_job_fails_with_the_first_of_its_pictures(rig: Rig, loaded: LoadedModel) -> None:
    # All five are decoded in one batch. Its second half holds a picture of the job that fails in its first half.
    bad, good = rig.submit(n=3), rig.submit(n=2, seed=30)
    row = denoised(loaded, bad.request, bad.request.seed).row
    assert row is not None

    def break_one(latents: torch.Tensor) -> None:
        if torch.equal(latents[0], row.state[0]):
            raise ArithmeticError("not this one")

    rig.decoder.before = break_one
    rig.finish(bad, good)
    error = rig.get(bad).error
    assert error is not None and error.code == "decode_failed" and error.message == "ArithmeticError: not this one"
    assert rig.contents(good) == alone(loaded, good.request)


def test_a_request_that_cannot_be_planned_fails(rig: Rig) -> None:
    job, good = rig.submit(num_inference_steps=5000), rig.submit()
    rig.finish(job, good)
    error = rig.get(job).error
    assert error is not None and error.code == "encode_failed" and "steps" in error.message
    assert rig.get(good).state is JobState.COMPLETED


@pytest.mark.parametrize("renew_every_s", [0.0, 1e9])
def test_a_lost_lease_writes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch, renew_every_s: float) -> None:
    # Noticed at the next renewal, or only when the outcome is refused.
    monkeypatch.setattr(leases, "RENEW_EVERY_S", renew_every_s)
    job = rig.submit(num_inference_steps=20)
    in_denoiser(rig, 5)
    rig.store.reap(NAME)
    (lease,) = rig.store.claim("another", 1, 30.0)
    for _ in range(60):
        rig.worker.tick()
    assert len(rig.unet.batches) <= 8 if renew_every_s == 0.0 else len(rig.unet.batches) == 20
    rig.worker.close()
    found = rig.get(job)
    assert found.state is JobState.RUNNING and not found.results and rig.value("darkroom_jobs_total") == 0
    assert rig.store.complete(lease.id, [])


def test_jobs_of_other_models_are_left_to_other_workers(rig: Rig) -> None:
    foreign, own = rig.submit(model="unknown"), rig.submit()
    rig.finish(own)
    assert rig.get(foreign).state is JobState.QUEUED and rig.get(foreign).attempts == 0
    (lease,) = rig.store.claim("another", 9, 30.0, ["unknown"])
    assert lease.job.id == foreign.id


def test_a_model_that_does_not_load_is_tried_again(tmp_path: Path, loaded: LoadedModel) -> None:
    outcomes = [ValueError("weights are missing"), loaded]

    def load(_: object) -> LoadedModel:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    rig = Rig(tmp_path, loaded, load)
    try:
        first = rig.submit()
        rig.finish(first)
        error = rig.get(first).error
        assert error is not None and error.code == "model_load_failed" and error.message == "weights are missing"
        second = rig.submit()
        rig.finish(second)
        assert rig.get(second).state is JobState.COMPLETED
    finally:
        rig.close()


def test_a_job_is_found_without_having_been_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.worker.tick()  # nothing there: from now on it waits to be told
    monkeypatch.setattr(leases, "CLAIM_EVERY_S", 0.0)
    job = rig.store.submit(make_request())
    rig.finish(job)
    assert rig.get(job).state is JobState.COMPLETED


def test_progress_is_published(rig: Rig) -> None:
    job = rig.submit()
    events = []
    while not rig.get(job).state.final:
        rig.worker.tick()
        events += rig.api.receive(0)
    events += rig.api.receive(1)
    assert [(e.step, e.steps) for e in events if e.type == "progress"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert events[-1].type == "finished" and {event.job for event in events} == {job.id}


def test_closing_gives_unfinished_jobs_back(rig: Rig) -> None:
    job = rig.submit(num_inference_steps=50)
    in_denoiser(rig, 3)
    rig.worker.close()
    assert rig.get(job).state is JobState.QUEUED
    assert rig.get(job).attempts == 0, "to stop in order is no failed attempt"


def test_no_more_jobs_are_claimed_than_have_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_PICTURES", 2)
    jobs = [rig.submit(seed=seed) for seed in range(4)]
    in_denoiser(rig, 1)
    assert [rig.get(job).state for job in jobs] == [JobState.RUNNING] * 2 + [JobState.QUEUED] * 2
    rig.finish(*jobs)
    assert all(rig.get(job).state is JobState.COMPLETED for job in jobs)


def test_a_claim_counts_pictures(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_PICTURES", 4)
    jobs = [rig.submit(n=2, seed=seed) for seed in (10, 20, 30)]
    in_denoiser(rig, 1)
    assert [rig.get(job).state for job in jobs] == [JobState.RUNNING] * 2 + [JobState.QUEUED]
    rig.finish(*jobs)
    assert [len(rig.get(job).results) for job in jobs] == [2, 2, 2]


def test_pictures_count_while_their_model_is_loaded(tmp_path: Path, loaded: LoadedModel) -> None:
    gate = threading.Event()
    rig = Rig(tmp_path, loaded, lambda _: loaded if gate.wait(30) else loaded)
    try:
        for seed in range(0, 400, 10):
            rig.submit(n=10, seed=seed)
        for _ in range(5):
            rig.worker.tick()
        assert rig.store.stats().running == 7, "with 6 there is still room for 4 pictures, with 7 for none"
    finally:
        gate.set()
        rig.close()


def test_a_warm_worker_knows_what_batches_cost(rig: Rig) -> None:
    rig.worker.warm_up("tiny-xl")
    assert rig.residency.resident == ("tiny-xl",)
    assert rig.unet.batches == [8] * 4  # 1, 2, 4 and 8 lanes, each filled up to the strict batch
