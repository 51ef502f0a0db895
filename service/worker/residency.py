"""Which models are loaded, and how their networks run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engines.cache import EngineCache, sha256_of_files
from engines.prepare import prepare, weights_digest
from models.families import text_to_image
from models.families.text_to_image import TextToImageModel
from models.spec.model import ModelSpec
from service.settings import Settings
from service.worker.numerics import Numerics, numerics_id

logger = logging.getLogger(__name__)

MAX_LANES = 16
STRICT_LANES = 8
"""Torch's CPU kernels choose their order of summation by the batch size: only a constant one gives constant bytes."""


EXPORTABLE = ("StableDiffusionXLPipeline",)
"""Pipelines whose networks become engines; the others run on torch."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and the two ways its rows may run."""

    model: TextToImageModel
    strict: Numerics
    """A row's bytes are its own, whatever it is batched with."""
    fast: Numerics

    def numerics(self, deterministic: bool) -> Numerics:
        """How a new row runs."""
        return self.strict if deterministic else self.fast


def load_model(spec: ModelSpec, settings: Settings) -> LoadedModel:
    """Load a model on the configured back end; with ONNX Runtime, export what the engine cache lacks."""
    if settings.backend == "onnxruntime" and spec.pipeline in EXPORTABLE:
        return _on_onnxruntime(spec, settings)
    return _on_torch(spec)


def _on_onnxruntime(spec: ModelSpec, settings: Settings) -> LoadedModel:
    engines = prepare(spec.folder, EngineCache(settings.engines_path), settings.threads)
    model = text_to_image.load_with(spec.folder, {"unet": engines.denoiser}, engines.decoder)
    parts = {
        "backend": "onnxruntime",
        "torch": torch.__version__,
        "unet": engines.denoiser.numerics,
        "decoder": engines.decoder.numerics,
        "rest": _rest_digest(spec),
    }
    numerics = Numerics(numerics_id(parts), padded_lanes=0, max_lanes=MAX_LANES, lone_decode=False)
    return LoadedModel(model, strict=numerics, fast=numerics)


def _on_torch(spec: ModelSpec) -> LoadedModel:
    model = text_to_image.load(spec.folder)
    parts = {
        "backend": "torch",
        "version": torch.__version__,
        "precision": "fp32",
        "device": f"cpu/{torch.backends.cpu.get_cpu_capability()}",
        "weights": weights_digest(spec.folder, (spec.system.denoiser, "vae")),
        "rest": _rest_digest(spec),
    }
    strict = numerics_id({**parts, "invariance": f"fixed-{STRICT_LANES}"})
    fast = numerics_id({**parts, "invariance": "fast"})
    return LoadedModel(
        model,
        strict=Numerics(strict, padded_lanes=STRICT_LANES, max_lanes=STRICT_LANES, lone_decode=True),
        fast=Numerics(fast, padded_lanes=0, max_lanes=MAX_LANES, lone_decode=False),
    )


def _rest_digest(spec: ModelSpec) -> str:
    """Hash of what runs in torch on every back end: text towers, tokenizers, and the tables made from the schedule."""
    parts = [path for path in sorted(spec.folder.iterdir()) if path.name.startswith(("scheduler", "text_enc", "token"))]
    return sha256_of_files([path for part in parts for path in sorted(part.iterdir())])


class Residency:
    """Loads models in the background, once each, and keeps them."""

    def __init__(self, specs: Mapping[str, ModelSpec], load: Callable[[ModelSpec], LoadedModel]) -> None:
        self._specs = specs
        self._load = load
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._models: dict[str, Future[LoadedModel]] = {}

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the models that can run now."""
        return tuple(name for name, future in self._models.items() if future.done() and not future.exception())

    def request(self, name: str) -> Future[LoadedModel]:
        """The model, or the promise of it. A failed load is tried again by the next request.

        Raises:
            KeyError: no such model is installed.
        """
        future = self._models.get(name)
        if future is None or (future.done() and future.exception() is not None):
            future = self._loader.submit(self._timed, self._specs[name])
            self._models[name] = future
        return future

    def close(self) -> None:
        """Stop loading."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _timed(self, spec: ModelSpec) -> LoadedModel:
        began = time.monotonic()
        loaded = self._load(spec)
        logger.info("model loaded", extra={"model": spec.name, "seconds": round(time.monotonic() - began, 2)})
        return loaded
