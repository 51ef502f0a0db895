"""Encoded prompts, kept for the requests that repeat them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from models.conditioners.condition import Condition
from models.families import text_to_image
from models.families.text_to_image import TextToImageModel
from service.jobs.job import PictureRequest
from service.metrics import WorkerMetrics

CACHED_BYTES = 256 * 2**20
"""They lie on the model's device: a pair of SDXL's takes 1.2 MB, one of SD3's 11 MB in fp32."""


class Prompts:
    """The conditions of the last requests, the least used making room."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._looks = metrics.prompt_cache
        self._known: OrderedDict[tuple[str, ...], dict[str, Condition]] = OrderedDict()
        self._bytes = 0

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
            self._bytes += _size(found)
            while self._bytes > CACHED_BYTES and len(self._known) > 1:
                self._bytes -= _size(self._known.popitem(last=False)[1])
        else:
            self._known.move_to_end(key)
        return found


def _size(conditions: Mapping[str, Condition]) -> int:
    """Bytes of a request's conditions."""
    parts = (part for each in conditions.values() for part in (each.context, each.vector, each.concat))
    return sum(part.nbytes for part in parts if part is not None)
