"""From the wire to a job, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.spec.model import ModelSpec
from service.api.resolve import capabilities, find_model, resolve, schedulers
from service.api.schema import ImagesRequest, JobRequest
from service.errors import InvalidRequest, UnknownModel
from service.jobs.job import TextToImage


def test_a_missing_seed_is_random_but_not_under_a_key(models: dict[str, ModelSpec]) -> None:
    body = JobRequest(prompt="x")
    assert len({resolve(body, models).seed for _ in range(20)}) > 15
    assert resolve(body, models, "key") == resolve(body, models, "key") != resolve(body, models, "other")
    assert 0 <= resolve(body, models, "key").seed < 2**32


def test_seed_zero_is_a_seed(models: dict[str, ModelSpec]) -> None:
    assert resolve(JobRequest(prompt="x", seed=0), models).seed == 0


@pytest.mark.parametrize("name", ["dpm++2m", "DPMSolverMultistepScheduler"])
def test_schedulers_have_two_names(models: dict[str, ModelSpec], name: str) -> None:
    assert resolve(JobRequest(prompt="x", scheduler=name), models).scheduler == "dpm++2m"


def test_a_plan_that_cannot_be_is_refused_before_it_is_queued(models: dict[str, ModelSpec]) -> None:
    with pytest.raises(InvalidRequest, match="flow-euler.*not one of euler, "):
        resolve(JobRequest(prompt="x", scheduler="flow-euler"), models)
    assert resolve(JobRequest(prompt="x", scheduler="lcm", num_inference_steps=50), models).scheduler == "lcm"
    with pytest.raises(InvalidRequest, match="lcm.*51 steps"):
        resolve(JobRequest(prompt="x", scheduler="lcm", num_inference_steps=51), models)


def test_plms_is_not_offered_where_it_draws_nonsense(models: dict[str, ModelSpec]) -> None:
    name = next(iter(models))
    config = {**models[name].scheduler_config, "prediction_type": "v_prediction"}
    assert "plms" in schedulers(replace(models[name], scheduler_config=config))
    assert "plms" not in schedulers(replace(models[name], scheduler_config={**config, "rescale_betas_zero_snr": True}))


def test_a_model_of_another_task_is_refused(models: dict[str, ModelSpec]) -> None:
    name = next(iter(models))
    video = replace(models[name], pipeline="StableVideoDiffusionPipeline")
    with pytest.raises(InvalidRequest, match="image-to-video"):
        resolve(JobRequest(prompt="x"), {name: video})


def test_a_model_that_needs_a_picture_is_not_asked_for_one(models: dict[str, ModelSpec]) -> None:
    spec = next(iter(models.values()))
    assert capabilities(replace(spec, needs="picture")) == ("image-to-image", "inpainting")
    assert capabilities(replace(spec, needs="picture and mask")) == ("inpainting",)
    for needs, body, field in (
        ("picture", JobRequest(prompt="x"), "image"),
        ("picture and mask", JobRequest(prompt="x"), "image"),
        ("picture and mask", JobRequest(prompt="x", model="tiny", task="image-to-image", image=b"x"), "mask"),
    ):
        needy = {spec.name: replace(spec, needs=needs)}  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=f"{field} is required: model 'tiny' needs a {needs}") as refused:
            resolve(body, needy)
        assert refused.value.param == field
    choice = {"needy": replace(spec, name="needy", needs="picture"), spec.name: spec}
    assert resolve(ImagesRequest(prompt="x"), choice).model == spec.name


def test_a_fast_decoder_is_a_folder_of_the_model(models: dict[str, ModelSpec], tmp_path: Path) -> None:
    spec = replace(next(iter(models.values())), folder=tmp_path)
    asked = JobRequest(prompt="x", decoder="fast")
    with pytest.raises(InvalidRequest, match="only the full one"):
        resolve(asked, {spec.name: spec})
    (tmp_path / "vae_tiny").mkdir()
    request = resolve(asked, {spec.name: spec})
    assert isinstance(request, TextToImage) and request.fast_decoder


def test_sizes(models: dict[str, ModelSpec]) -> None:
    for size, expected in ((None, (64, 64)), ("auto", (64, 64)), ("64x32", (64, 32))):
        request = resolve(JobRequest(prompt="x", size=size), models)
        assert (request.width, request.height) == expected
    for size in ("32x64", "64X64", " 64x64", "064x64x", "", "x", "1e2x64"):
        with pytest.raises(InvalidRequest, match="64x64, 64x32"):
            resolve(JobRequest(prompt="x", size=size), models)


def test_no_model_at_all() -> None:
    with pytest.raises(UnknownModel, match="installed: none"):
        find_model(None, {})
