"""Measure the shipped image-to-video model and write its card and contact sheet.

    python -m models.training.video_evaluate --model models/zoo/emoji-svd --artwork DIR --out models/zoo/emoji-svd

The run fails when a control does not come out at chance.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from models.families.image_to_video import ImageToVideoModel, Motion, decode, guidance, load, start_row
from models.families.row import advance
from models.plan import make_plan
from models.temporal_decoder import TemporalDecoderVAE
from models.training import clips, temporal_autoencoder, video
from models.training.animations import Animations, render_animations
from models.training.artwork import Drawings, download, render
from models.training.emoji_svd import PACKAGES, PARTS, STYLES
from models.training.evaluate import parameters
from models.training.figures import chance_bounds
from models.training.flow import mean_speed
from models.training.notice import notice
from models.training.sheets import save_png
from models.training.video_card import card
from models.training.video_figures import OrderClassifier, flicker, frame_change, motion_figures, still_region
from models.weights import load_temporal_vae

INPUTS = 100
ROWS = 4
STRONG, STILL = 127, 0
"""Motion buckets."""
MOST_ASKED = 192
REAL_CLIPS = 400
UNSEEN_STYLES = ("blob", "classic", "gradient")
SHEET = 8
SHEET_BYTES = 640 * 1024
VERSIONS = ("numpy", "pillow", "resvg_py", "safetensors", "torch", "transformers")


def animate(model: ImageToVideoModel, pictures: Tensor, buckets: Sequence[int], first_seed: int) -> list[Tensor]:
    """A clip of each picture uint8 [N, 3, H, W] with the model's own defaults: each fp32 [T, 3, H, W] in [0, 1]."""
    plan = make_plan(model.schedule, model.spec.solver, model.spec.steps, guidance(model))
    made = []
    for start in track(range(0, len(pictures), ROWS), "clips"):
        rows = []
        for i in range(start, min(start + ROWS, len(pictures))):
            picture = pictures[i].float() / 127.5 - 1.0
            rows.append(start_row(model, plan, picture, Motion(bucket=buckets[i]), first_seed + i))
        while not rows[0].finished:
            advance(model.denoisers, rows)
        made += [_unit(decode(model, row)) for row in rows]
    return made


@torch.inference_mode()
def still_clip(vae: TemporalDecoderVAE, picture: Tensor, frames: int) -> Tensor:
    """The same picture in all frames, encoded and decoded: fp32 [T, 3, H, W] in [0, 1]."""
    latent = vae.encode(picture[None].float() / 127.5 - 1.0)
    decoded = vae.decode(latent[None].expand(-1, frames, -1, -1, -1), frames)[0]
    return (decoded.clamp(-1.0, 1.0) + 1.0) / 2.0


def _unit(clip: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(clip).permute(0, 3, 1, 2) / 255.0


def inputs(drawings: Drawings, count: int, styles: Sequence[str], seed: int) -> Tensor:
    """Random drawings of these styles on white: uint8 [count, 3, H, W]."""
    chosen = drawings.select(styles=styles)
    picked = np.random.default_rng(seed).choice(len(chosen), count, replace=False)
    return torch.from_numpy(chosen.on_background()[np.sort(picked)]).permute(0, 3, 1, 2).contiguous()


def real_clips(drawings: Drawings, animations: Animations, count: int, seed: int) -> Tensor:
    """Clips as training saw them, moving ones only: fp32 [count, T, 3, H, W] in [0, 1]."""

    def moving() -> Iterator[Tensor]:
        for clip in clips.random_clips(seed, drawings, animations, 2 * count):
            if clip.speed > 0.5:
                yield _unit(clip.frames)

    return torch.stack([clip for clip, _ in zip(moving(), range(count), strict=False)])


def measure(
    model: ImageToVideoModel, vae: TemporalDecoderVAE, pictures: Tensor, classifier: OrderClassifier, first_seed: int
) -> tuple[dict[str, Any], list[Tensor]]:
    """All figures over these inputs, and the clips of strong motion."""
    asked = np.random.default_rng(first_seed).integers(0, MOST_ASKED, len(pictures)).tolist()
    moving = animate(model, pictures, [STRONG] * len(pictures), first_seed)
    still = animate(model, pictures, [STILL] * len(pictures), first_seed)
    own = [still_clip(vae, picture, model.spec.frames) for picture in pictures]
    speeds = [mean_speed(clip) for clip in moving]
    regions = [still_region(clip) for clip in moving]
    order = classifier.accuracy(torch.stack(moving), first_seed)
    frozen = torch.stack([clip[:1].expand_as(clip) for clip in moving])
    low, high = chance_bounds(2, 2 * len(pictures))
    figures = {
        "first_frame_l1": float(np.mean([_l1(a[0], b[0]) for a, b in zip(moving, own, strict=True)])),
        "first_frame_l1_of_another_input": float(
            np.mean([_l1(a[0], b[0]) for a, b in zip(moving, own[1:] + own[:1], strict=True)])
        ),
        "motion": motion_figures(asked, animate(model, pictures, asked, first_seed)),
        "still": {
            "frame_change": float(np.mean([frame_change(clip) for clip in still])),
            "frame_change_when_moving": float(np.mean([frame_change(clip) for clip in moving])),
        },
        "strong": {
            "bucket": STRONG,
            "pixels_a_frame": float(np.mean(speeds)),
            "share_over_a_pixel": float(np.mean(np.array(speeds) >= 1.0)),
        },
        "order": {
            "accuracy": order,
            "of_frozen_clips": classifier.accuracy(frozen, first_seed),
            "chance_bounds": (low, high),
        },
        "flicker": {
            "generated": float(np.mean([flicker(clip, region) for clip, region in zip(moving, regions, strict=True)])),
            "still_clips_decoded": float(
                np.mean([flicker(clip, region) for clip, region in zip(own, regions, strict=True)])
            ),
            "still_share_of_pixels": float(np.mean([region.float().mean() for region in regions])),
        },
    }
    return figures, moving


def _l1(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())


def controls_at_chance(figures: dict[str, Any]) -> bool:
    """Whether what knows nothing comes out so."""
    low, high = figures["order"]["chance_bounds"]
    return (
        figures["first_frame_l1_of_another_input"] > 5 * figures["first_frame_l1"]
        and abs(figures["motion"]["spearman_of_another_clips_bucket"]) < 0.35
        and low <= figures["order"]["of_frozen_clips"] <= high
        and figures["still"]["frame_change_when_moving"] > 3 * figures["still"]["frame_change"]
    )


def describe(model: ImageToVideoModel, folder: Path) -> dict[str, Any]:
    """What the model is and what it was trained with."""
    weights = sorted(folder.rglob("*.safetensors"))
    recipe = {
        "data": {"clips": PARTS * clips.PART, "frames": clips.FRAMES, "animated_share": clips.ANIMATED_SHARE}
        | {"styles_set_in_motion": " ".join(STYLES)},
        "autoencoder": asdict(temporal_autoencoder.RECIPE)
        | {"batch": temporal_autoencoder.CLIPS, "frames": temporal_autoencoder.FRAMES},
    }
    for number, stage in enumerate(video.STAGES, 1):
        noise = {"log_sigma": " ± ".join(map(str, stage.log_sigma)), "change_weight": stage.change_weight}
        shared = {"batch": video.BATCH, "picture_dropout": video.DROPOUT}
        recipe[f"UNet and vision tower, stage {number}"] = asdict(stage.recipe) | noise | shared
    recipe["weights"] = {"mean of stages": " and ".join(map(str, video.AVERAGED)), "mixers moved by": video.MIX_SHIFT}
    spec = model.spec
    return {
        "model": folder.resolve().name,
        "defaults": {"steps": spec.steps, "guidance": spec.guidance, "solver": spec.solver, "size": spec.sizes[0]},
        "frames": spec.frames,
        "parameters": {path.parent.name: parameters(path) for path in weights},
        "training": recipe,
        "weights_sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
        },
        "versions": {"python": platform.python_version(), **{package: version(package) for package in VERSIONS}},
    }


def sheet(pictures: Tensor, made: Sequence[Tensor]) -> Image.Image:
    """Each input and the frames made of it in a row."""
    rows = [torch.cat([picture[None] / 255.0, clip]) for picture, clip in zip(pictures, made, strict=True)]
    pixels = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def main(
    model: Path = typer.Option(..., help="Folder of the model to measure."),
    artwork: Path = typer.Option(..., help="Where the artwork is, or is to be downloaded to (needs npm)."),
    out: Path = typer.Option(..., help="Folder for README.md, evaluation.json and the sheet; ../NOTICE beside it."),
    count: int = typer.Option(INPUTS, min=8, help="Input pictures."),
    first_seed: int = typer.Option(0, min=0, help="Seed of the first clip; the others count up."),
    trained_on: str = typer.Option("2 CPU cores", help="Machine and hours of the training, for the card."),
) -> None:
    """Measure a model, write its card, and fail when a control is not at chance."""
    out.mkdir(parents=True, exist_ok=True)
    download(artwork, PACKAGES)
    drawings, animations, network = render(artwork), render_animations(artwork), load(model)
    known, vae = drawings.select(styles=STYLES), load_temporal_vae(model)
    classifier = OrderClassifier.fit(real_clips(known, animations, REAL_CLIPS, 10_000), 0)
    held_out = real_clips(known, animations, count, 20_000)
    figures: dict[str, Any] = {"order_of_real_clips": classifier.accuracy(held_out, 1), "inputs": count}
    for name, styles in (("known", STYLES), ("unseen", UNSEEN_STYLES)):
        pictures = inputs(drawings, count, styles, 7)
        figures[name], made = measure(network, vae, pictures, classifier, first_seed)
        figures[name]["styles"] = styles
        if name == "known":
            few = np.linspace(0, count - 1, 2 * SHEET).round().astype(int)
            save_png(sheet(pictures[few], [made[i] for i in few]), out / "samples.png", SHEET_BYTES)
    report = {**describe(network, model), "trained_on": trained_on, "first_seed": first_seed, **figures}
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(report), encoding="utf-8")
    (out.parent / "NOTICE").write_text(notice(), encoding="utf-8")
    if not all(controls_at_chance(figures[name]) for name in ("known", "unseen")):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
