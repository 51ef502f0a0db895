"""A worker's model on TensorRT plans: built, judged, found again, and the pictures of torch.

A flavour that is not installed, or does not run on this card, is skipped with its own words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.plan import MODULES, Flavour, load_tensorrt
from engines.plan_session import PlanSession
from models.spec.model import ModelSpec
from service.settings import Settings
from service.worker.loaded import LoadedModel
from service.worker.opening import load_model
from service.worker.picture import Picture
from service.worker.placement import PRECISIONS, Placement
from service.worker.runner import Runner
from service.worker.upgrades import engine_life
from tests.support.rig import make_request

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]
CUDA = torch.device("cuda:0")


@pytest.fixture(scope="module", params=[(flavour, precision) for flavour in MODULES for precision in ("bf16", "fp16")])
def opened(
    request: pytest.FixtureRequest, sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, LoadedModel]:
    """The tiny model on plans, and on torch in the same precision."""
    flavour: Flavour
    flavour, precision = request.param
    try:
        load_tensorrt(flavour)
    except ValueError as error:
        pytest.skip(str(error))
    place, spec = Placement(CUDA, PRECISIONS[precision]), ModelSpec.read(sdxl_folder)
    settings = Settings(data=tmp_path_factory.mktemp(flavour), backend=flavour, engines="wait", threads=1)
    life = engine_life(spec, settings, place)
    if life.reasons:
        pytest.skip(f"{flavour} on {torch.cuda.get_device_name()}: {life.reasons}")
    assert all(life.verdicts[name].accepted for name in ("unet", "vae/decoder"))
    again = engine_life(spec, settings.model_copy(update={"engines": "cached"}), place)
    assert again.paths == life.paths, "the next start finds them"
    on_torch = load_model(spec, settings.model_copy(update={"backend": "torch"}), place)
    return load_model(spec, settings, place, again), on_torch


def drawn(loaded: LoadedModel, seeds: list[int], width: int = 32) -> tuple[list[NDArray[np.uint8]], set[str]]:
    """The pixels of pictures that are batched with each other, and their numerics ids."""
    requests = [make_request(seed=seed, width=width, num_inference_steps=5) for seed in seeds]
    pieces = [Picture(request, request.seed, 0.0, loaded, loaded.strict) for request in requests]
    runner = Runner()
    while pieces[0].pixels is None:
        runner.run(pieces[0].stage, pieces)
    return [piece.pixels for piece in pieces if piece.pixels is not None], {piece.numerics.id for piece in pieces}


def test_a_picture_on_plans_is_about_that_of_torch(opened: tuple[LoadedModel, LoadedModel]) -> None:
    on_plans, on_torch = opened
    assert isinstance(on_plans.networks["denoiser"].get()["unet"], PlanSession) and not on_plans.graphs
    (near, far), ids = drawn(on_plans, [7, 8])
    (reference,), _ = drawn(on_torch, [7])
    assert ids == {on_plans.strict.id} != {on_torch.strict.id}
    difference = abs(near.astype(int) - reference).mean()
    assert difference < 8.0 < abs(far.astype(int) - reference).mean()


def test_a_strict_row_on_plans_has_the_same_bytes_in_every_batch(opened: tuple[LoadedModel, LoadedModel]) -> None:
    on_plans, _ = opened
    together = drawn(on_plans, [7, 8, 9, 10])[0]
    alone = [drawn(on_plans, [seed])[0][0] for seed in (7, 8, 9, 10)]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])


def test_a_row_of_another_shape_runs_on_torch(opened: tuple[LoadedModel, LoadedModel]) -> None:
    on_plans, on_torch = opened
    (wide,), ids = drawn(on_plans, [7], width=64)
    (reference,), _ = drawn(on_torch, [7], width=64)
    assert ids == {on_torch.strict.id} and np.array_equal(wide, reference)
