"""What a model folder offers to a request: plain data, read from the published files. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from models.spec.config import read_config, read_json, reading
from models.spec.files import stamp
from models.spec.vae import VAESpec, VQSpec, read_part_spec

Task = Literal["text-to-image", "upscaling", "image-to-video"]
Needs = Literal["", "picture", "picture and mask", "low-resolution picture"]
Eight = Literal["int8", "fp8"]
"""Numbers of 8 bits; fp8 is E4M3."""


@dataclass(frozen=True)
class System:
    """What the pipeline class that a folder names says about it, and the defaults its authors recommend."""

    task: Task
    denoiser: str
    """The subfolder of the denoising network."""
    steps: int
    guidance: float
    autoencoder: str = "vae"
    """The subfolder of the autoencoder."""
    reads_text: bool = True
    """Whether there is anything to read a prompt with. Without there is nothing to guide by either."""


ONE_TOWER = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionUpscalePipeline")
"""Pipelines whose texts are read by one tower, nothing of them pooled."""

SYSTEMS = {
    "StableDiffusionPipeline": System("text-to-image", "unet", 50, 7.5),
    "StableDiffusionInpaintPipeline": System("text-to-image", "unet", 50, 7.5),
    "StableDiffusionXLPipeline": System("text-to-image", "unet", 30, 5.0),
    "StableDiffusionXLInpaintPipeline": System("text-to-image", "unet", 30, 7.5),
    "StableDiffusionXLImg2ImgPipeline": System("text-to-image", "unet", 50, 5.0),
    "StableDiffusion3Pipeline": System("text-to-image", "transformer", 28, 7.0),
    "StableDiffusionUpscalePipeline": System("upscaling", "unet", 75, 9.0),
    "LDMSuperResolutionPipeline": System("upscaling", "unet", 100, 1.0, "vqvae", reads_text=False),
    "StableVideoDiffusionPipeline": System("image-to-video", "unet", 25, 3.0),
}

REFINER = "refiner"
"""The name that lines of a plan give to the network that takes over from the base."""

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

PICTURE_CHANNELS = 3


@dataclass(frozen=True)
class UpscalingSpec:
    """How a model enlarges a picture: its network sees the picture, noised, behind the noisy latent of the same size,
    and is told the noise level (conditioning augmentation, Ho et al. 2022). That of latent diffusion sees it as it is
    (Rombach et al. 2022, section 4.4)."""

    factor: int
    """Times by which each side grows."""
    multiple: int
    """What the sides of the picture are padded to: the network halves them so often."""
    max_noise_level: int
    scheduler_config: dict[str, Any]
    """Of the schedule by which the picture is noised: a noise level is one of its training timesteps. Empty for a model
    that is shown the picture as it is."""


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
    needs: Needs = ""
    """What a request must bring beside its prompt: a picture for a refiner, a mask too for an inpainting network."""
    upscaling: UpscalingSpec | None = None
    """Of a model that enlarges pictures. The largest of its ``sizes`` bounds the pixels of what it makes."""
    refiner: Path | None = None
    """Folder of the model whose network takes over near the end of a picture (Podell et al. 2023, section 2.5)."""
    refiner_at: float = 0.8
    """The share of the training steps after which it does."""
    licence: str | None = None
    """Identifier of the licence of its weights, where the folder states one."""
    eight_bits: dict[str, Eight] = field(default_factory=dict)
    """What its engine multiplies in, by subfolder: that of the denoiser, or ``vae`` for its decoder. Torch, and engines
    of what is not named here, have the precision of the worker."""
    files: str = ""
    """Stamp of its files and its refiner's: a model of the same name with other weights is another model."""

    @property
    def system(self) -> System:
        """What all models of this pipeline have in common."""
        return SYSTEMS[self.pipeline]

    @property
    def hand_over(self) -> tuple[str, float] | None:
        """What a plan is told of the refiner; see :func:`models.plan.make_plan`."""
        return None if self.refiner is None else (REFINER, self.refiner_at)

    @classmethod
    def read(cls, folder: Path) -> ModelSpec:
        """Read a diffusers folder.

        Raises:
            ValueError: not a folder of a system that is served here; the message says what was found.
        """
        index = read_json(folder / "model_index.json")
        pipeline = index.get("_class_name")
        if not isinstance(pipeline, str) or pipeline not in SYSTEMS:
            raise ValueError(f"{folder}: pipeline {pipeline!r} is not served; known: {', '.join(SYSTEMS)}")
        system = SYSTEMS[pipeline]
        vae = read_part_spec(folder, system.autoencoder)
        with reading(path := folder / system.denoiser / "config.json"):
            network = read_config(path)
            native = int(network["sample_size"]) * vae.downscale
            frames = int(network.get("num_frames", 1)) if system.task == "image-to-video" else 1
            needs = _needs(system, int(network["in_channels"]), vae, index)
        upscaling = _upscaling(folder, system, network, vae, index) if system.task == "upscaling" else None
        # The authors of the upscaler show it at four times the size that it was trained at, too.
        sizes = [(native * times, native * times) for times in ((1, 4) if upscaling else (1,))]
        with reading(path := folder / "scheduler" / "scheduler_config.json"):
            scheduler = read_json(path)
            distilled = _is_turbo(pipeline, scheduler)
            solver = _solver_of(scheduler)
        with reading(path := folder / "darkroom.json"):
            card = read_json(path) if path.exists() else {}
            refiner = _refiner(folder, card.get("refiner"))
            return cls(
                name=folder.name,
                folder=folder,
                pipeline=pipeline,
                sizes=tuple((int(w), int(h)) for w, h in card.get("sizes", sizes)),
                steps=int(card.get("steps", 1 if distilled else system.steps)),
                guidance=float(card.get("guidance", 1.0 if distilled else system.guidance)),
                solver=card.get("solver", solver),
                scheduler_config=scheduler,
                zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
                frames=frames,
                max_guidance=1.0 if distilled or not system.reads_text else 30.0,
                needs=needs,
                upscaling=upscaling,
                refiner=refiner,
                refiner_at=float(card.get("refiner_at", cls.refiner_at)),
                eight_bits=_eight_bits(system, card.get("eight_bits", {})),
                licence=card.get("licence") or _stated_licence(folder / "README.md"),
                files=stamp([folder, *([] if refiner is None else [refiner])]),
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


def _needs(system: System, channels: int, vae: VAESpec | VQSpec, index: dict[str, Any]) -> Needs:
    """From the channels that the network takes: noisy ones alone, or behind them mask and masked picture, or the
    picture to be enlarged."""
    if system.task == "image-to-video":
        return ""
    noisy = vae.latent_channels
    drawing: Needs = "picture" if index.get("requires_aesthetics_score") else ""
    known: dict[int, Needs] = {noisy: drawing, 2 * noisy + 1: "picture and mask"}
    if system.task == "upscaling":
        known = {noisy + PICTURE_CHANNELS: "low-resolution picture"}
    if channels not in known:
        expected = " or ".join(map(str, known))
        raise ValueError(f"config in_channels={channels} is not served here, expected {expected}")
    return known[channels]


def _upscaling(
    folder: Path, system: System, network: dict[str, Any], vae: VAESpec | VQSpec, index: dict[str, Any]
) -> UpscalingSpec:
    with reading(folder / "unet" / "config.json"):
        classes = int(network.get("num_class_embeds") or 0)
        multiple = 2 ** (len(network["block_out_channels"]) - 1)
        if isinstance(vae, VQSpec):
            _check_unscaled(vae, folder / system.autoencoder / "config.json")
            return UpscalingSpec(vae.downscale, multiple, 0, {})
        if not classes:
            raise ValueError("config num_class_embeds is missing, expected the number of noise levels")
    with reading(path := folder / "low_res_scheduler" / "scheduler_config.json"):
        config = read_json(path)
        levels = min(classes, int(config.get("num_train_timesteps", 1000)))
    with reading(folder / "model_index.json"):
        most = min(int(index.get("max_noise_level", 350)), levels - 1)
    return UpscalingSpec(vae.downscale, multiple, most, config)


def _check_unscaled(vae: VQSpec, path: Path) -> None:
    """Latent diffusion trained on latents as they are, and its pipeline does not scale them, whatever later versions of
    the library wrote into a config."""
    with reading(path):
        if vae.scaling_factor != 1.0:
            raise ValueError(f"config scaling_factor={vae.scaling_factor:g} is not supported, expected 1")
        if vae.vq_embed_dim != vae.latent_channels:
            raise ValueError(f"config vq_embed_dim={vae.vq_embed_dim}, expected latent_channels={vae.latent_channels}")


def _refiner(folder: Path, name: object) -> Path | None:
    """The folder beside this one that a card names."""
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or name == "..":
        raise ValueError(f"refiner {name!r}, expected the name of a folder beside {folder.name}")
    refiner = folder.parent / name
    if not (refiner / "model_index.json").exists():
        raise ValueError(f"refiner {name!r} is not a model folder beside {folder.name}")
    return refiner


def _eight_bits(system: System, asked: dict[str, Any]) -> dict[str, Eight]:
    """What a card asks for, checked."""
    for part, kind in asked.items():
        if part not in (system.denoiser, "vae"):
            raise ValueError(f"eight_bits of {part!r}, expected {system.denoiser!r} or 'vae'")
        if kind not in get_args(Eight):
            raise ValueError(f"eight_bits of {part!r} is {kind!r}, expected {' or '.join(get_args(Eight))}")
    return dict(asked)


def _stated_licence(card: Path) -> str | None:
    """What the lines at the top of a published model card say, as on a hub: the licence's name, or else its kind."""
    try:
        lines = card.read_text(encoding="utf-8", errors="replace")[:10_000].splitlines()
    except OSError:
        return None
    if not lines or lines[0].strip() != "---":
        return None
    stated: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            return stated.get("license_name") or stated.get("license")
        key, _, value = line.partition(":")
        stated[key.strip()] = value.strip().strip("\"'")
    return None
