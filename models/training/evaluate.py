"""Measure the shipped text-to-image model and write its card, its contact sheets and the attribution of its data.

    python -m models.training.evaluate --model models/zoo/emoji-xl --artwork DIR --judge FILE --out models/zoo/emoji-xl

Every figure comes with what it would be for a model that knows nothing, and the run fails when such a control does not
come out at chance.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from safetensors import safe_open

from models.families.row import advance
from models.families.text_to_image import TextToImageModel, decode, load, prepare, start_row
from models.guidance import Guidance
from models.plan import make_plan
from models.training import autoencoder, diffusion, distillation
from models.training.artwork import Drawings, download, render
from models.training.card import card
from models.training.concepts import CAPTION_STYLES, CONCEPTS, FIRST_CONCEPTS, HELD_OUT, Concept, by_slug
from models.training.figures import Answers, RealArt, ask, examine, is_held_out, measure, measure_held_out, real_art
from models.training.judge import TRAIN_STYLES, Judge, kept_concepts, real_accuracy, restrict, train_judge
from models.training.notice import notice
from models.training.scene_figures import REPEATS, measure_scenes, new_scenes, set_stage, trained_captions
from models.training.sheets import contact_sheet, prompt_sheet, save_png, write_blind
from models.weights import load_tiny_decoder, load_vae

ROWS = 16  # pictures in flight at once
JUDGE_STEPS = 6000
SHEET_CONCEPTS = 120
SHEET_SCENES = 12  # of each kind
SHEET_BYTES = 1536 * 1024
PACKAGES = ("numpy", "pillow", "resvg_py", "safetensors", "torch", "transformers")
Pictures = NDArray[np.uint8]


def develop(model: TextToImageModel, prompts: Sequence[str], first_seed: int) -> Pictures:
    """The prompts' pictures with the model's own defaults, seeds counting up: uint8 [N, H, W, 3]."""
    spec, pictures = model.spec, []
    guidance = Guidance(spec.guidance)
    plan = make_plan(model.schedule, spec.solver, spec.steps, guidance, network=spec.system.denoiser)
    for start in track(range(0, len(prompts), ROWS), "evaluate: pictures"):
        rows = []
        for seed, prompt in enumerate(prompts[start : start + ROWS], first_seed + start):
            conditions = prepare(model, prompt, "", guidance.scale > 1.0, *spec.sizes[0])
            rows.append(start_row(model, plan, conditions, seed, spec.sizes[0]))
        while not rows[0].finished:
            advance(model.denoisers, rows)
        pictures.append(decode(model.decoder, rows))
    return np.concatenate(pictures)


def describe(model: TextToImageModel, folder: Path, drawings: Drawings) -> dict[str, Any]:
    """What the model is, what it was trained with, and how well its autoencoder does on held-out drawings."""
    spec = model.spec
    held_out, vae = autoencoder.on_white(autoencoder.split(drawings).held_out), load_vae(folder)
    small = load_tiny_decoder(folder / "vae_tiny")
    weights = sorted(folder.rglob("*.safetensors"))
    return {
        "model": folder.resolve().name,
        "defaults": {"steps": spec.steps, "guidance": spec.guidance, "solver": spec.solver, "size": spec.sizes[0]},
        "parameters": {path.parent.name: parameters(path) for path in weights},
        "autoencoder_psnr_db": autoencoder.psnr(vae.encode, vae.decode, held_out),
        "small_decoder_psnr_db": autoencoder.psnr(vae.encode, small.decode, held_out),
        "training": recipes(distilled=spec.max_guidance == 1.0),
        "weights_sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
        },
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def parameters(weights: Path) -> int:
    """How many numbers a safetensors file holds."""
    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def recipes(distilled: bool) -> dict[str, dict[str, Any]]:
    """How the shipped model is trained, part by part; a student of distillation has one part more than its teacher."""
    last = distillation.described() if distilled else {}
    shared = {"batch": diffusion.BATCH, "caption_dropout": diffusion.CAPTION_DROPOUT}
    scenes = {"scenes": diffusion.SCENES, "scene_share": diffusion.SCENE_SHARE}
    return {
        "autoencoder": asdict(autoencoder.RECIPE)
        | {"batch": autoencoder.BATCH, "kl_weight": autoencoder.KL_WEIGHT, "held_out": autoencoder.HELD_OUT},
        "first stage": {"concepts": len(FIRST_CONCEPTS)} | asdict(diffusion.RECIPE) | shared,
        "second stage": {"concepts": len(CONCEPTS), "held_out_pairs": len(HELD_OUT)}
        | asdict(diffusion.SECOND_RECIPE)
        | shared
        | scenes,
        **last,
    }


def ready_judge(path: Path | None, drawings: Drawings, steps: int) -> Judge:
    """The judge in path; a newly trained one, kept in path if that is given, when there is none yet."""
    if path is not None and path.exists():
        return Judge.load(path)
    judge = train_judge(drawings, [concept.slug for concept in CONCEPTS], steps)
    if path is not None:
        judge.save(path)
    return judge


def with_steps(model: TextToImageModel, steps: int) -> TextToImageModel:
    """The same model with another number of steps as its default."""
    return replace(model, spec=replace(model.spec, steps=steps))


def things(
    model: TextToImageModel, concepts: Sequence[Concept], judge: Judge, art: RealArt, per_pair: int, first_seed: int
) -> tuple[dict[str, Any], Answers]:
    """Draw every kept concept in every style, and the figures of that; pairs that were held out have their own."""
    names = [concept.name for concept in concepts]
    requests = ask(concepts, per_pair, first_seed)
    answers = examine(requests, develop(model, [r.prompt for r in requests], first_seed), judge, art)
    hidden = is_held_out(requests, concepts, HELD_OUT)
    seen = answers.where(~hidden)
    held_out = measure_held_out(answers.where(hidden), seen, names, art) if hidden.any() else None
    return measure(seen, names, art) | {"held_out": held_out}, answers


def scenes(
    model: TextToImageModel, concepts: Sequence[Concept], judge: Judge, drawings: Drawings, first_seed: int, sheet: Path
) -> dict[str, Any]:
    """Draw scenes that training has not seen, write some of them as a sheet, and the figures of every kind."""
    stage = set_stage(drawings, concepts, judge, HELD_OUT)
    trained = trained_captions(drawings, CONCEPTS, HELD_OUT, diffusion.SCENES, 0)
    figures, prompts, shown = {}, [], []
    for kind, asked in new_scenes(stage, trained, REPEATS, first_seed).items():
        pictures = develop(model, [scene.caption for scene in asked], first_seed)
        figures[kind] = measure_scenes(kind, asked, pictures, stage)
        few = np.linspace(0, len(asked) - 1, SHEET_SCENES).round().astype(int)
        prompts += [asked[i].caption for i in few]
        shown.append(pictures[few])
    save_png(prompt_sheet(prompts, np.concatenate(shown)), sheet, SHEET_BYTES)
    return figures


def write_sheet(path: Path, answers: Answers, art: RealArt, concepts: Sequence[Concept]) -> None:
    """The first picture of concepts, evenly chosen, in each style, beside its nearest drawing; held-out styles are
    named behind the concept's name. Answers come in the order of `ask`."""
    chosen = np.linspace(0, len(concepts) - 1, min(SHEET_CONCEPTS, len(concepts))).round().astype(int)
    cells = (len(concepts), len(CAPTION_STYLES), -1, *answers.pictures.shape[1:])
    first, beside = (x.reshape(cells)[chosen, :, 0] for x in (answers.pictures, art.pictures[answers.nearest]))
    unseen = dict(sorted(HELD_OUT))
    names = [c.name + (f" *{unseen[c.slug]}" if c.slug in unseen else "") for c in (concepts[i] for i in chosen)]
    save_png(contact_sheet(names, first, beside), path, SHEET_BYTES)


def controls_at_chance(report: dict[str, Any]) -> bool:
    """Whether every control came out as it does for a model that knows nothing."""
    held_out = report["held_out"]
    checks = [check for kind in report["scenes"].values() for check in kind["checks"].values()]
    return (
        report["judge"]["controls_at_chance"]
        and (held_out is None or held_out["shuffled"] <= held_out["at_most"])
        and all(check["control_at_chance"] for check in checks)
    )


def main(
    model: Path = typer.Option(..., help="Folder of the model to measure."),
    artwork: Path = typer.Option(..., help="Where the artwork is, or is to be downloaded to (needs npm)."),
    out: Path = typer.Option(..., help="Folder for README.md, evaluation.json and the sheets; ../NOTICE beside it."),
    judge: Path | None = typer.Option(None, help="The judge's file; trained, and kept there, when it is missing."),
    per_pair: int = typer.Option(2, min=1, help="Pictures of each concept in each style."),
    first_seed: int = typer.Option(0, min=0, help="Seed of the first picture; the others count up."),
    first: int | None = typer.Option(None, min=2, help="Only so many concepts, for a trial."),
    trained_on: str = typer.Option("2 CPU cores", help="Machine and hours of the training, for the card."),
    also_steps: list[int] = typer.Option([], help="Judge the things at these numbers of steps too."),
    blind: tuple[int, Path] = typer.Option((0, Path("blind.png")), help="Write so many pictures as a blind test."),
) -> None:
    """Measure a model, write its card, and fail when a control is not at chance."""
    download(artwork)
    drawings = render(artwork)
    full_judge = ready_judge(judge, drawings, JUDGE_STEPS)
    real = real_accuracy(full_judge, drawings)
    concepts = by_slug(list(kept_concepts(real)[:first]))
    slugs = [concept.slug for concept in concepts]
    referee, art, network = restrict(full_judge, slugs), real_art(drawings, slugs), load(model)
    out.mkdir(parents=True, exist_ok=True)
    figures, answers = things(network, concepts, referee, art, per_pair, first_seed)
    figures["scenes"] = scenes(network, concepts, referee, drawings, first_seed, out / "scenes.png")
    figures["other_steps"] = {
        steps: things(with_steps(network, steps), concepts, referee, art, per_pair, first_seed)[0]["judge"]["accuracy"]
        for steps in also_steps
    }
    restricted = float(np.mean(list(real_accuracy(referee, drawings).values())))
    figures["judge"] |= {"trained_on": TRAIN_STYLES, "real_accuracy": restricted}
    left_out = {by_slug([slug])[0].name: share for slug, share in real.items() if slug not in kept_concepts(real)}
    trial = {"trained_on": trained_on, "per_pair": per_pair, "first_seed": first_seed, "only_first": first}
    report = {**describe(network, model, drawings), **trial, **figures, "left_out": left_out}
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(report), encoding="utf-8")
    (out.parent / "NOTICE").write_text(notice(), encoding="utf-8")
    write_sheet(out / "samples.png", answers, art, concepts)
    if blind[0]:
        write_blind(blind[1], answers.pictures, answers.concept, [c.name for c in concepts], blind[0])
    print(f"{len(answers)} pictures of things, judge {figures['judge']['accuracy']:.3f}; written to {out}")
    if not controls_at_chance(report):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
