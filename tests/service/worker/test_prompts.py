"""Encoded prompts: made once, kept for as long as there is room."""

from __future__ import annotations

import pytest
import torch

from models.conditioners.condition import Condition
from models.families import text_to_image
from models.families.text_to_image import TextToImageModel
from service.metrics import WorkerMetrics
from service.worker import prompts as module
from service.worker.loaded import LoadedModel
from service.worker.prompts import Prompts
from tests.support.rig import make_request


def tensors(conditions: dict[str, Condition]) -> list[torch.Tensor]:
    parts = (part for each in conditions.values() for part in (each.context, each.vector, each.concat))
    return [part for part in parts if part is not None]


def test_a_prompt_is_encoded_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    original = text_to_image.prepare

    def counted(model: object, prompt: str, negative: str, *rest: object) -> object:
        calls.append((prompt, negative))
        return original(model, prompt, negative, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(text_to_image, "prepare", counted)
    metrics, model = WorkerMetrics(), loaded.model
    assert isinstance(model, TextToImageModel)
    prompts = Prompts(metrics)

    def encode(numerics_id: str = "one", **changes: object) -> None:
        made = prompts.conditions(model, make_request(**changes), numerics_id)
        if len(calls) == 1:
            monkeypatch.setattr(module, "CACHED_BYTES", 2 * sum(part.nbytes for part in tensors(made)))

    for _ in range(2):
        encode(prompt="a")
        encode(prompt="a", seed=99)
        encode(prompt="a", negative_prompt="b")
    assert calls == [("a", ""), ("a", "b")]
    looks = [metrics.registry.get_sample_value("darkroom_prompt_cache_total", {"result": r}) for r in ("hit", "miss")]
    assert looks == [4, 2]
    encode(prompt="a", guidance_scale=1.0)  # the oldest, ("a", ""), makes room
    encode(prompt="a", negative_prompt="b", guidance_scale=1.0)  # without guidance a negative prompt says nothing
    assert len(calls) == 3
    encode(prompt="a", negative_prompt="b")
    assert len(calls) == 3
    encode(prompt="a")
    assert len(calls) == 4
    encode("another", prompt="a")
    assert len(calls) == 5, "other numerics have other conditions"
