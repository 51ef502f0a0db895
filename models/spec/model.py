"""What a model folder offers to a request: plain data, read from the published files. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec.config import read_json
from models.spec.vae import read_vae_spec


@dataclass(frozen=True)
class ModelSpec:
    """What a model folder offers to a request: read from the published files, and from an optional ``darkroom.json``
    beside them with the defaults its authors recommend."""

    name: str
    folder: Path
    sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of every size the model was trained for, the native one first."""
    steps: int
    guidance: float
    solver: str
    scheduler_config: dict[str, Any]
    zeros_for_empty_prompt: bool = True
    """Whether an empty negative prompt is all zeros instead of an encoded empty text."""
    max_steps: int = 150
    max_guidance: float = 30.0

    @classmethod
    def read(cls, folder: Path) -> ModelSpec:
        """Read a diffusers folder.

        Raises:
            ValueError: not a folder of a system that is served here; the message says what was found.
        """
        index = read_json(folder / "model_index.json")
        pipeline = index.get("_class_name")
        if pipeline != "StableDiffusionXLPipeline":
            raise ValueError(f"{folder}: pipeline {pipeline!r} is not served, expected 'StableDiffusionXLPipeline'")
        unet = read_json(folder / "unet" / "config.json")
        vae = read_vae_spec(folder)
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        native = int(unet["sample_size"]) * vae.downscale
        card = read_json(folder / "darkroom.json") if (folder / "darkroom.json").exists() else {}
        return cls(
            name=folder.name,
            folder=folder,
            sizes=tuple((int(w), int(h)) for w, h in card.get("sizes", [(native, native)])),
            steps=int(card.get("steps", 30)),
            guidance=float(card.get("guidance", 5.0)),
            solver=card.get("solver", SOLVER_OF_SCHEDULER.get(scheduler["_class_name"], "euler")),
            scheduler_config=scheduler,
            zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        )


SOLVER_OF_SCHEDULER = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++2m",
}
"""Our solver's name for the scheduler class that a published folder names."""


def find_models(folder: Path) -> dict[str, ModelSpec]:
    """Every model folder directly below ``folder``, by name."""
    return {path.parent.name: ModelSpec.read(path.parent) for path in sorted(folder.glob("*/model_index.json"))}
