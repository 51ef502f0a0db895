"""The first passes of a model, so that the first request meets nothing new and the scheduler knows what passes cost."""

from __future__ import annotations

import time

from service.jobs.job import TextToImage
from service.worker.batch import Stage
from service.worker.cost import CostTable
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.runner import Runner

LADDER = (1, 2, 4, 8, 16)
"""Lanes of the passes."""
GRAPHED_PASSES = 3


def warm_up(loaded: LoadedModel, runner: Runner, costs: CostTable) -> None:
    """One pass of every batch size and one decoding; nothing for models that do not draw from text: passes of clips are
    long, and those of upscalers have any shape.

    With CUDA graphs it is three passes of every size: the second is captured, and the third costs what a step costs.
    """
    spec, numerics = loaded.model.spec, loaded.strict
    if spec.system.task != "text-to-image":
        return
    width, height = spec.sizes[0]
    request = TextToImage(
        model=spec.name,
        prompt="",
        width=width,
        height=height,
        num_inference_steps=GRAPHED_PASSES if loaded.graphs else 1,
        guidance_scale=1.0,
        scheduler=spec.solver,
        seed=0,
    )
    for lanes in (n for n in LADDER if n <= numerics.max_lanes):
        pictures = [Picture(request, seed, 0.0, loaded, numerics) for seed in range(lanes)]
        runner.encode(pictures)
        while pictures[0].evaluations > 1:
            runner.run(Stage.DENOISE, pictures)
        _timed(Stage.DENOISE, pictures, runner, costs)
    _timed(Stage.DECODE, pictures[:1], runner, costs)


def _timed(stage: Stage, pictures: list[Picture], runner: Runner, costs: CostTable) -> None:
    key, began = pictures[0].key, time.perf_counter()
    runner.run(stage, pictures)
    costs.measured(key, len(pictures), time.perf_counter() - began)
