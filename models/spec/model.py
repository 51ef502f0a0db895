"""What a model folder offers to a request: plain data, read from the published files. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.spec.config import read_json
from models.spec.vae import read_vae_spec

Task = Literal["text-to-image", "image-to-video"]


@dataclass(frozen=True)
class System:
    """What the pipeline class that a folder names says about it, and the defaults its authors recommend."""

    task: Task
    denoiser: str
    """The subfolder of the denoising network."""
    steps: int
    guidance: float


SYSTEMS = {
    "StableDiffusionPipeline": System("text-to-image", "unet", 50, 7.5),
    "StableDiffusionXLPipeline": System("text-to-image", "unet", 30, 5.0),
    "StableDiffusion3Pipeline": System("text-to-image", "transformer", 28, 7.0),
    "StableVideoDiffusionPipeline": System("image-to-video", "unet", 25, 3.0),
}

SOLVER_OF_SCHEDULER = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++2m",
    "PNDMScheduler": "plms",
    "LCMScheduler": "lcm",
    "UniPCMultistepScheduler": "unipc",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}
"""Our solver's name for the scheduler class that a published folder names."""


@dataclass(frozen=True)
class ModelSpec:
    """What a model folder offers to a request: read from the published files, and from an optional ``darkroom.json``
    beside them with the defaults its authors recommend."""

    name: str
    folder: Path
    pipeline: str
    """The published class that runs this folder."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of every size the model was trained for, the native one first."""
    steps: int
    guidance: float
    solver: str
    scheduler_config: dict[str, Any]
    zeros_for_empty_prompt: bool = True
    """Whether an empty negative prompt is all zeros instead of an encoded empty text."""
    frames: int = 1
    max_steps: int = 150
    max_guidance: float = 30.0

    @property
    def system(self) -> System:
        """What all models of this pipeline have in common."""
        return SYSTEMS[self.pipeline]

    @classmethod
    def read(cls, folder: Path) -> ModelSpec:
        """Read a diffusers folder.

        Raises:
            ValueError: not a folder of a system that is served here; the message says what was found.
        """
        index = read_json(folder / "model_index.json")
        pipeline = index.get("_class_name")
        if pipeline not in SYSTEMS:
            raise ValueError(f"{folder}: pipeline {pipeline!r} is not served; known: {', '.join(SYSTEMS)}")
        system = SYSTEMS[pipeline]
        network = read_json(folder / system.denoiser / "config.json")
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        card = read_json(folder / "darkroom.json") if (folder / "darkroom.json").exists() else {}
        distilled = _is_turbo(pipeline, scheduler)
        native = int(network["sample_size"]) * read_vae_spec(folder).downscale
        return cls(
            name=folder.name,
            folder=folder,
            pipeline=pipeline,
            sizes=tuple((int(w), int(h)) for w, h in card.get("sizes", [(native, native)])),
            steps=int(card.get("steps", 1 if distilled else system.steps)),
            guidance=float(card.get("guidance", 1.0 if distilled else system.guidance)),
            solver=card.get("solver", _solver_of(scheduler)),
            scheduler_config=scheduler,
            zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
            frames=int(network.get("num_frames", 1)) if system.task == "image-to-video" else 1,
            max_guidance=1.0 if distilled else 30.0,
        )


def find_models(folder: Path) -> dict[str, ModelSpec]:
    """Every model folder directly below ``folder``, by name."""
    return {path.parent.name: ModelSpec.read(path.parent) for path in sorted(folder.glob("*/model_index.json"))}


def _solver_of(scheduler: dict[str, Any]) -> str:
    """Our solver for what a published scheduler's config asks for."""
    solver = SOLVER_OF_SCHEDULER.get(scheduler["_class_name"], "euler")
    if solver == "dpm++2m" and scheduler.get("use_flow_sigmas"):
        return "flow-dpm++2m"
    return "dpm++2m-sde" if solver == "dpm++2m" and scheduler.get("algorithm_type") == "sde-dpmsolver++" else solver


def _is_turbo(pipeline: str, scheduler: dict[str, Any]) -> bool:
    """Whether this is a student of adversarial distillation (Sauer et al. 2023): as published, SDXL's networks with
    ancestral sampling and trailing spacing. Guidance burns its pictures, so it takes none."""
    return (
        pipeline in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
        and scheduler["_class_name"] == "EulerAncestralDiscreteScheduler"
        and scheduler.get("timestep_spacing") == "trailing"
    )
