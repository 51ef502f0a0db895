"""One request without a server: the same bytes that a worker makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.jobs.job import ImageToImage
from service.settings import Settings
from service.worker import local
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel
from tests.support.rig import Rig, a_picture, alone, make_request


@pytest.fixture
def settings(tmp_path: Path, sdxl_folder: Path) -> Settings:
    return Settings(data=tmp_path / "data", models=(sdxl_folder,), backend="torch", threads=1)


def test_the_bytes_are_those_of_a_worker(settings: Settings, rig: Rig) -> None:
    request = make_request(num_inference_steps=3)
    seen: list[tuple[int, int]] = []
    content = local.generate(settings, request, lambda step, of: seen.append((step, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    job = rig.submit(num_inference_steps=3)
    neighbour = rig.submit(num_inference_steps=2, seed=50)
    rig.finish(job, neighbour)
    assert rig.contents(job) == [content] != rig.contents(neighbour)


def test_fast_rows_too(settings: Settings, loaded: LoadedModel) -> None:
    request = make_request(num_inference_steps=1, deterministic=False, output_format="jpeg")
    assert local.generate(settings, request, lambda *_: None) == alone(loaded, request)[0]


def test_a_model_that_is_not_installed(settings: Settings) -> None:
    with pytest.raises(KeyError):
        local.generate(settings, make_request(model="unknown"), lambda *_: None)


def test_from_a_picture(settings: Settings, loaded: LoadedModel) -> None:
    same = make_request(num_inference_steps=4).model_dump(exclude={"task"})
    request, inputs = ImageToImage(**same, image="0" * 64, strength=0.5), Inputs(a_picture())
    made = local.generate(settings, request, lambda *_: None, inputs)
    assert made == alone(loaded, request, inputs)[0] != alone(loaded, request, Inputs(a_picture(3)))[0]
