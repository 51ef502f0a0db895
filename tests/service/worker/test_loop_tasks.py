"""Every task through the worker's loop, with the bytes that it has alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.jobs.job import ImageToImage, Inpainting, Job, JobState
from service.worker import loop
from service.worker.batch import Limits
from service.worker.clip import Clip
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel
from service.worker.runner import Runner
from service.worker.video import encode_clip
from tests.support.rig import Rig, a_picture, alone, make_clip, make_request

SAME = make_request(num_inference_steps=4).model_dump(exclude={"task"})
MASK = a_picture(3)[:, :, 0]


@pytest.fixture
def both(
    tmp_path: Path, clip_model: LoadedModel, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    """A worker with the video model, which is watched, and the picture model."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, clip_model, others=[loaded])
    yield rig
    rig.close()


def clip_alone(loaded: LoadedModel, job: Job) -> NDArray[np.uint8]:
    request = job.request
    clip, runner = Clip(request, request.seed, 0.0, loaded, loaded.strict, Inputs(a_picture())), Runner()  # type: ignore[arg-type]
    while clip.pixels is None:
        runner.run(clip.stage, [clip])
    return clip.pixels


def test_pictures_from_pictures_share_batches_with_others(rig: Rig) -> None:
    image, mask = rig.put(a_picture()), rig.put(MASK)
    jobs = [
        rig.send(ImageToImage(**SAME, image=image, strength=0.5)),
        rig.send(Inpainting(**SAME, image=image, mask=mask)),
        rig.submit(num_inference_steps=4),
    ]
    rig.finish(*jobs)
    batches = len(rig.unet.batches)
    inputs = [Inputs(a_picture()), Inputs(a_picture(), MASK), Inputs()]
    expected = [alone(rig.loaded, job.request, each) for job, each in zip(jobs, inputs, strict=True)]  # type: ignore[arg-type]
    assert [rig.contents(job) for job in jobs] == expected and len({made[0] for made in expected}) == 3
    assert batches < 2 + 4 + 4


def test_an_input_that_is_gone_fails_its_job_alone(rig: Rig) -> None:
    bad, good = rig.send(ImageToImage(**SAME, image="0" * 64, strength=0.5)), rig.submit()
    rig.finish(bad, good)
    error = rig.get(bad).error
    assert error is not None and error.code == "input_unreadable" and "is not there any more" in error.message
    assert rig.get(good).state is JobState.COMPLETED


def test_a_clip_with_what_stands_for_it(both: Rig) -> None:
    job = both.send(make_clip(both.put(a_picture()), segments=2, decode_chunk_size=2, fps=9))
    both.finish(job)
    (result,) = both.get(job).results
    frames = clip_alone(both.loaded, job)
    expected = encode_clip(frames, job.request, 7)  # type: ignore[arg-type]
    assert result.media_type == "video/mp4" and both.contents(job) == [expected.content]
    with av.open(io.BytesIO(expected.content)) as container:
        assert container.streams.video[0].frames == 5, "the frame in which segments meet is not repeated"
    stored = {variant.name: both.artifacts.open(variant.content_sha256) for variant in result.variants}
    assert stored == {name: content for name, (content, _) in expected.variants.items()}
    assert both.value("darkroom_stage_seconds_count", stage="decode") == 4
    assert both.value("darkroom_steps_total", use="useful") == 6


def test_progress_of_a_clip_counts_all_its_segments(both: Rig) -> None:
    job = both.send(make_clip(both.put(a_picture()), segments=2))
    events = []
    while not both.get(job).state.final:
        both.worker.tick()
        events += both.api.receive(0)
    assert [(event.step, event.steps) for event in events if event.type == "progress"] == [(i, 6) for i in range(1, 7)]


def test_a_clip_yields_to_pictures_between_its_steps(both: Rig) -> None:
    clip = both.send(make_clip(both.put(a_picture()), num_inference_steps=150))
    both.tick_until(lambda: len(both.unet.batches) >= 3)
    picture = both.submit(num_inference_steps=2)
    both.finish(picture)
    assert both.get(clip).state is JobState.RUNNING and len(both.unet.batches) < 150
    assert both.value("darkroom_preemptions_total") >= 1
    both.worker.drain(0.0)


def test_the_lanes_of_a_step_that_is_too_long_run_apart(both: Rig) -> None:
    both.worker._limits = Limits(1e-9)
    clip, events = both.send(make_clip(both.put(a_picture()), deterministic=False)), []
    while not both.get(clip).state.final:
        both.worker.tick()
        events += both.api.receive(0)
    assert both.get(clip).state is JobState.COMPLETED and both.unet.batches == [1] * 6
    assert {event.step for event in events if event.type == "progress"} <= {0, 1, 2, 3}
    assert both.value("darkroom_steps_total", use="useful") == 3


def test_previews_are_shown_in_order(rig: Rig) -> None:
    job, events = rig.submit(num_inference_steps=8, partial_images=3, n=2, output_format="jpeg"), []
    while not rig.get(job).state.final:
        rig.worker.tick()
        events += rig.api.receive(0)
    events += rig.api.receive(1)
    shown = [event for event in events if event.type == "preview"]
    assert [event.part for event in shown if event.index == 0] == [0, 1, 2] and len(shown) == 6
    steps = [event.step or 0 for event in shown if event.index == 0]
    assert steps == sorted(set(steps)) and {event.steps for event in shown} == {8}
    assert events[-1].type == "finished" and rig.value("darkroom_previews_total") == 6
    for event in shown:
        assert event.preview is not None
        with Image.open(io.BytesIO(rig.artifacts.open(event.preview))) as picture:
            assert picture.format == "JPEG" and picture.size == (32, 32)
    assert len(rig.decoder.batches) == 1 + 2, "the first preview of a model is decoded, the others are learnt from it"
    assert rig.contents(job) == alone(rig.loaded, job.request), "they change nothing"  # type: ignore[arg-type]
