"""What 8 bits cost: pictures of a model in fp32 against those with some of its networks in 8 bits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from engines.cache import EngineCache
from engines.networks import networks_of
from engines.prepare import build_graph
from engines.quantise import calibrate, quantise
from engines.session import OnnxSession
from engines.verdict import Network, Recorder, Sample
from models.families import text_to_image
from models.families.row import Denoiser
from models.families.text_to_image import Decoder, TextToImageModel
from models.spec.model import Eight, ModelSpec

MEASURED_FROM = 1000
"""Seed of the first picture that is compared; those that the scales come from begin at 0."""
PEAK = 255.0


@dataclass(frozen=True)
class Quality:
    """Pictures in 8 bits against the same ones in fp32."""

    psnr_db: float
    """Of all pixels of all pictures together."""
    levels: float
    """Mean absolute difference, of 255."""
    seconds_ratio: float
    """Processor time in units of fp32's."""
    bytes_ratio: float
    """Size of the graphs in units of fp32's."""


def measure(
    folder: Path, cache: EngineCache, kinds: Mapping[str, Eight], prompts: Sequence[str], work: Path, threads: int = 1
) -> Quality:
    """Draw every prompt twice, with fp32 and in 8 bits, by scales from other seeds of the same prompts.

    Args:
        folder: of a model that draws from text.
        cache: holds its graphs of fp32, or gets them.
        kinds: by the network's name, ``unet`` or ``vae/decoder`` for example.
        prompts: at least one.
        work: an empty folder, for the graphs of 8 bits.
        threads: of one operation.

    Raises:
        ValueError: the model has no such network or does not draw from text alone, or there are no prompts.
    """
    model, paths = _opened(folder, cache, list(kinds), prompts)
    sessions: dict[str, Network] = {name: OnnxSession(path, threads) for name, path in paths.items()}
    samples = _recorded(model, sessions, list(kinds), prompts)
    eight: dict[str, Path] = {}
    for name, kind in kinds.items():
        (target := work / name.replace("/", "-")).mkdir()
        eight[name] = quantise(paths[name], target, calibrate(paths[name], samples[name]), kind)
    expected, seconds = _draw(_with(model, sessions), prompts, MEASURED_FROM)
    changed = {name: OnnxSession(path, threads) for name, path in eight.items()}
    got, seconds_of_eight = _draw(_with(model, {**sessions, **changed}), prompts, MEASURED_FROM)
    difference = got.astype(np.float64) - expected
    return Quality(
        psnr_db=float(10 * np.log10(PEAK**2 / (np.mean(difference**2) + 1e-10))),
        levels=float(np.abs(difference).mean()),
        seconds_ratio=seconds_of_eight / seconds,
        bytes_ratio=_bytes(eight.values()) / _bytes(paths[name] for name in kinds),
    )


def drawn(
    folder: Path, cache: EngineCache, names: Sequence[str], prompts: Sequence[str], threads: int = 1
) -> dict[str, list[Sample]]:
    """Inputs of networks while every prompt is drawn once in fp32, for the scales of 8 bits; arguments and errors as
    for :func:`measure`."""
    model, paths = _opened(folder, cache, names, prompts)
    return _recorded(model, {name: OnnxSession(path, threads) for name, path in paths.items()}, names, prompts)


def _opened(
    folder: Path, cache: EngineCache, names: Sequence[str], prompts: Sequence[str]
) -> tuple[TextToImageModel, dict[str, Path]]:
    """A model, and its graphs of fp32."""
    networks, spec = networks_of(folder), ModelSpec.read(folder)
    if spec.system.task != "text-to-image" or spec.needs:
        raise ValueError(f"{folder.name} does not draw from text alone")
    if unknown := [name for name in names if name not in networks or networks[name].is_tower]:
        raise ValueError(f"network {unknown[0]!r} is none of {folder.name}, which has {', '.join(networks)}")
    if not prompts:
        raise ValueError("without prompts there are no pictures")
    model = text_to_image.load(folder)
    used = [name for name in networks if name in (*model.denoisers, "vae/decoder")]
    return model, {name: build_graph(networks[name], cache) for name in used}


def _recorded(
    model: TextToImageModel, sessions: Mapping[str, Network], names: Sequence[str], prompts: Sequence[str]
) -> dict[str, list[Sample]]:
    recorders = {name: Recorder(sessions[name], keep=len(prompts) * model.spec.steps) for name in names}
    _draw(_with(model, {**sessions, **recorders}), prompts, 0)
    return {name: recorder.samples for name, recorder in recorders.items()}


def _with(model: TextToImageModel, networks: Mapping[str, Network]) -> TextToImageModel:
    denoisers = {name: cast(Denoiser, networks[name]) for name in model.denoisers}
    return replace(model, denoisers=denoisers, decoder=cast(Decoder, networks["vae/decoder"]))


def _draw(model: TextToImageModel, prompts: Sequence[str], seed: int) -> tuple[NDArray[np.uint8], float]:
    """One picture a prompt with the model's own defaults, [N, H, W, 3], and the processor time that they took."""
    began = time.process_time()
    pictures = [text_to_image.generate(model, prompt, seed + i) for i, prompt in enumerate(prompts)]
    return np.stack(pictures), time.process_time() - began


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
