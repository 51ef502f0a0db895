"""The first passes of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.worker.batch import BatchKey, Stage
from service.worker.cost import CostTable
from service.worker.loaded import LoadedModel
from service.worker.runner import Runner
from service.worker.warm import warm_up
from tests.support.rig import watch


class Noted(CostTable):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Stage, int]] = []

    def measured(self, key: BatchKey, lanes: int, seconds: float) -> None:
        self.told.append((key.stage, lanes))
        super().measured(key, lanes, seconds)


def test_every_batch_size_and_one_decoding(loaded: LoadedModel) -> None:
    watched, unet, decoder = watch(loaded)
    costs = Noted()
    warm_up(watched, Runner(), costs)
    assert costs.told == [*((Stage.DENOISE, lanes) for lanes in (1, 2, 4, 8)), (Stage.DECODE, 1)]
    assert unet.batches == [8] * 4 and decoder.batches == [1]


def test_clips_are_too_long_for_that(clip_model: LoadedModel) -> None:
    costs = Noted()
    warm_up(clip_model, Runner(), costs)
    assert costs.told == []


def test_with_graphs_only_what_a_replay_costs_is_told(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, unet, _ = watch(loaded)
    monkeypatch.setattr(Runner, "_denoisers", lambda _, model: model.model.denoisers)
    costs = Noted()
    warm_up(replace(watched, graphs=True), Runner(), costs)
    assert costs.told == [*((Stage.DENOISE, lanes) for lanes in (1, 2, 4, 8)), (Stage.DECODE, 1)]
    assert unet.batches == [8] * 4 * 3
