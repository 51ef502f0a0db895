"""Encoded prompts, kept for the requests that repeat them."""

from __future__ import annotations

from collections import OrderedDict

from models.conditioners.condition import Condition
from models.families import text_to_image
from models.families.text_to_image import TextToImageModel
from service.jobs.job import PictureRequest
from service.metrics import WorkerMetrics

CACHED_PROMPTS = 256


class Prompts:
    """The conditions of the last requests, the least used making room."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._looks = metrics.prompt_cache
        self._known: OrderedDict[tuple[str, ...], dict[str, Condition]] = OrderedDict()

    def conditions(self, model: TextToImageModel, request: PictureRequest, numerics_id: str) -> dict[str, Condition]:
        """The conditions of a request's rows by name. Prompts are encoded one at a time: the bytes of one must not
        depend on its neighbours."""
        guided = request.guidance_scale > 1.0
        said = (request.prompt, request.negative_prompt if guided else "")
        key = (numerics_id, *said, str(guided), str(request.width), str(request.height))
        found = self._known.get(key)
        self._looks.labels("miss" if found is None else "hit").inc()
        if found is None:
            found = text_to_image.prepare(model, *said, guided, request.width, request.height)
            self._known[key] = found
            if len(self._known) > CACHED_PROMPTS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return found
