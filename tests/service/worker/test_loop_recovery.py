"""The worker when something is lost: checkpoints, memory, and the end of its time."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from service.jobs.job import JobState
from service.worker import checkpoints, loop
from service.worker.checkpoints import unpack
from tests.support.rig import Rig, a_picture, alone, make_clip


@pytest.fixture
def careful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_SHARE", 1e9)


def in_denoiser(rig: Rig, calls: int) -> None:
    rig.tick_until(lambda: len(rig.unet.batches) >= calls)


def too_large(limit: int) -> Callable[..., None]:
    """For a watched UNet: there is memory for so many lanes."""

    def look(x: Tensor, *_: Tensor) -> None:
        if len(x) > limit:
            raise MemoryError(f"{len(x)} lanes")

    return look


def test_another_worker_goes_on_where_the_lost_one_was(rig: Rig, careful: None) -> None:
    job = rig.submit(num_inference_steps=20, scheduler="euler-ancestral", n=2)
    in_denoiser(rig, 12)
    rig.tick_until(lambda: rig.get(job).checkpoint is not None)
    rig.lose_worker()
    assert rig.get(job).state is JobState.QUEUED and rig.get(job).checkpoint is not None
    made = len(rig.unet.batches)
    rig.finish(job)
    assert len(rig.unet.batches) - made < 40
    assert rig.get(job).attempts == 2 and rig.value("darkroom_resumed_steps_total") >= 2
    assert rig.contents(job) == alone(rig.loaded, job.request)  # type: ignore[arg-type]
    assert rig.value("darkroom_checkpoints_total", outcome="written") > 1


def test_a_lost_clip_goes_on_too(clips: Rig, careful: None) -> None:
    request = make_clip(clips.put(a_picture()), segments=2, decode_chunk_size=2)
    whole = clips.send(request)
    clips.finish(whole)
    job = clips.send(request)
    in_denoiser(clips, 6 + 5)
    clips.tick_until(lambda: clips.get(job).checkpoint is not None)
    made = len(clips.unet.batches)
    clips.lose_worker()
    clips.finish(job)
    assert clips.get(job).results == clips.get(whole).results
    assert len(clips.unet.batches) - made < 6 and clips.value("darkroom_resumed_steps_total") >= 1


def test_only_the_last_checkpoint_is_kept(rig: Rig, careful: None) -> None:
    job, kept = rig.submit(num_inference_steps=8), rig.submit(num_inference_steps=60, seed=9)
    rig.finish(job)
    rig.worker.drain(0.0)
    rig.worker.close()
    name = rig.get(kept).checkpoint
    assert name is not None and unpack(rig.artifacts.open(name)).job == kept.id
    files = {artifact.name for artifact in rig.artifacts.list()}
    assert files == {name, rig.get(job).results[0].content_sha256}


def test_short_jobs_have_no_checkpoint(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 60.0)
    job = rig.submit(num_inference_steps=10)
    rig.finish(job)
    assert rig.value("darkroom_checkpoints_total", outcome="written") == 0


def test_a_checkpoint_that_cannot_be_stored_is_left_out(
    rig: Rig, careful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = rig.submit(num_inference_steps=6)
    with monkeypatch.context() as patch:

        def full(content: bytes) -> str:
            raise OSError("no space left on device")

        patch.setattr(rig.artifacts, "put", full)
        in_denoiser(rig, 3)
        rig.tick_until(lambda: rig.value("darkroom_checkpoints_total", outcome="failed") > 0)
    rig.finish(job)
    assert rig.contents(job) == alone(rig.loaded, job.request)  # type: ignore[arg-type]


def test_a_batch_for_which_memory_is_too_small_is_split_and_remembered(rig: Rig) -> None:
    rig.unet.before = too_large(4)
    jobs = [rig.submit(seed=seed, deterministic=False, guidance_scale=1.0, num_inference_steps=6) for seed in range(8)]
    rig.finish(*jobs)
    assert all(rig.get(job).state is JobState.COMPLETED for job in jobs)
    assert max(rig.unet.batches) <= 4
    assert 1 <= rig.value("darkroom_out_of_memory_total", stage="denoise") <= 3, "it learns"


def test_what_has_no_memory_alone_fails_with_its_reason(rig: Rig) -> None:
    rig.unet.before = too_large(0)
    job = rig.submit(deterministic=False)
    rig.finish(job)
    error = rig.get(job).error
    assert error is not None and (error.code, error.message) == ("out_of_memory", "MemoryError: 1 lanes")
    rig.unet.before = lambda *_: None
    other = rig.submit(deterministic=False)
    rig.finish(other)
    assert rig.get(other).state is JobState.COMPLETED


def test_a_row_whose_lanes_do_not_fit_together_runs_them_apart(rig: Rig) -> None:
    together = rig.submit(deterministic=False)
    rig.finish(together)
    rig.unet.batches.clear()
    rig.unet.before = too_large(1)
    apart = rig.submit(deterministic=False)
    rig.finish(apart)
    assert set(rig.unet.batches) == {1} and rig.value("darkroom_out_of_memory_total", stage="denoise") >= 1
    pictures = [np.asarray(Image.open(io.BytesIO(rig.contents(job)[0])), dtype=int) for job in (apart, together)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_worker_that_stops_finishes_what_it_can(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PARK_FROM_S", 0.0)
    short, long = rig.submit(num_inference_steps=2), rig.submit(num_inference_steps=999, scheduler="ddim", seed=8)
    in_denoiser(rig, 1)
    rig.worker._costs.measured(next(item.key for item in rig.worker._flight.items()), 2, 0.5)
    rig.worker.drain(5.0)
    late = rig.submit()
    rig.worker.close()
    assert rig.get(short).state is JobState.COMPLETED
    left = rig.get(long)
    assert left.state is JobState.QUEUED and left.attempts == 0 and left.checkpoint is not None
    assert rig.get(late).state is JobState.QUEUED, "nothing more is claimed"
