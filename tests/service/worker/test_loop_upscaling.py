"""Upscaling through the worker's loop, with the bytes that it has alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.jobs.job import JobState
from service.worker import loop
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel
from tests.support.rig import Rig, a_picture, alone, make_upscaling


@pytest.fixture
def enlarging(tmp_path: Path, upscaler: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A worker with the upscaler, which is watched."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, upscaler)
    yield rig
    rig.close()


def test_pictures_are_enlarged_together(enlarging: Rig) -> None:
    """Of other noise levels, and of a size that is filled up to that of the others."""
    whole, part = a_picture(size=(16, 16)), a_picture(1, size=(11, 15))
    jobs = [
        enlarging.send(make_upscaling(enlarging.put(whole))),
        enlarging.send(make_upscaling(enlarging.put(whole), noise_level=0, prompt="")),
        enlarging.send(make_upscaling(enlarging.put(part), width=44, height=60)),
    ]
    enlarging.finish(*jobs)
    assert set(enlarging.unet.batches) == {8} and len(enlarging.unet.batches) < 3 * 4
    expected = [
        alone(enlarging.loaded, job.request, Inputs(pixels))  # type: ignore[arg-type]
        for job, pixels in zip(jobs, (whole, whole, part), strict=True)
    ]
    assert [enlarging.contents(job) for job in jobs] == expected and len({made[0] for made in expected}) == 3
    with Image.open(io.BytesIO(expected[2][0])) as picture:
        assert picture.size == (44, 60)


def test_that_of_latent_diffusion_enlarges_pictures_together(
    tmp_path: Path, ldm_upscaler: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that nothing reads, and a size that is filled up to that of the others."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, ldm_upscaler)
    asked = {"guidance_scale": 1.0, "noise_level": 0}
    whole, part = a_picture(size=(16, 16)), a_picture(1, size=(11, 15))
    jobs = [
        rig.send(make_upscaling(rig.put(whole), **asked)),
        rig.send(make_upscaling(rig.put(whole), prompt="", **asked, seed=8)),
        rig.send(make_upscaling(rig.put(part), width=44, height=60, **asked)),
    ]
    rig.finish(*jobs)
    expected = [
        alone(rig.loaded, job.request, Inputs(pixels))  # type: ignore[arg-type]
        for job, pixels in zip(jobs, (whole, whole, part), strict=True)
    ]
    made = [rig.contents(job) for job in jobs]
    rig.close()
    assert made == expected and len({each[0] for each in expected}) == 3
    with Image.open(io.BytesIO(expected[2][0])) as picture:
        assert picture.size == (44, 60)


def test_a_model_that_enlarges_nothing_fails_the_job(rig: Rig) -> None:
    job = rig.send(make_upscaling(rig.put(a_picture(size=(16, 16))), model="tiny-xl"))
    rig.finish(job)
    error = rig.get(job).error
    assert rig.get(job).state is JobState.FAILED
    assert error is not None and "model 'tiny-xl' is no upscaler" in error.message
