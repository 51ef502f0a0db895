"""Measure the shipped text-to-image model and write its card, its contact sheet and the attribution of its data.

    python -m models.training.evaluate --model models/zoo/emoji-xl --artwork DIR --judge FILE --out models/zoo/emoji-xl

Every figure comes with what it would be for a model that knows nothing, and the run fails when such a control does not
come out at chance.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from models.families.text_to_image import TextToImageModel, advance, decode, load, prepare, start_row
from models.plan import make_plan
from models.training import autoencoder, diffusion
from models.training.artwork import Drawings, download, render
from models.training.card import card, contact_sheet, notice, save_png, write_blind
from models.training.concepts import CAPTION_STYLES, CONCEPTS, Concept, by_slug
from models.training.judge import TRAIN_STYLES, Judge, kept_concepts, real_accuracy, train_judge
from models.weights import load_vae

ROWS = 16  # pictures in flight at once
SHEET_BYTES = 1536 * 1024
PACKAGES = ("numpy", "pillow", "resvg_py", "safetensors", "torch", "transformers")
Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """One picture to ask for; concept and style are places in the kept concepts and in CAPTION_STYLES."""

    concept: int
    style: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class RealArt:
    """All real drawings in CAPTION_STYLES, on white: uint8 [M, H, W, 3]; row [C, S] finds the kept concepts' own."""

    pictures: Pictures
    row: NDArray[np.int64]


def ask(concepts: Sequence[Concept], per_pair: int, first_seed: int = 0) -> tuple[Request, ...]:
    """per_pair requests "NAME STYLE" for each concept and style, with seeds that count up from first_seed."""
    places = product(range(len(concepts)), range(len(CAPTION_STYLES)), range(per_pair))
    return tuple(
        Request(c, s, f"{concepts[c].name} {CAPTION_STYLES[s]}", first_seed + i) for i, (c, s, _) in enumerate(places)
    )


def develop(model: TextToImageModel, requests: Sequence[Request]) -> Pictures:
    """The requests' pictures with the model's own defaults: uint8 [N, H, W, 3]."""
    spec, pictures = model.spec, []
    width, height = spec.sizes[0]
    plan = make_plan(model.schedule, spec.solver, spec.steps, spec.guidance)
    for start in track(range(0, len(requests), ROWS), "evaluate: pictures"):
        rows = []
        for request in requests[start : start + ROWS]:
            lanes = prepare(model, request.prompt, "", spec.guidance, width, height)
            rows.append(start_row(model, plan, lanes, request.seed, width, height))
        for line in plan.lines:
            advance(model.denoisers[line.network], rows)
        pictures.append(decode(model.decoder, rows))
    return np.concatenate(pictures)


def real_art(drawings: Drawings, slugs: Sequence[str]) -> RealArt:
    """Raises ValueError when one of slugs is not drawn in every style of CAPTION_STYLES."""
    chosen = drawings.select(None, CAPTION_STYLES)
    rows = {(int(c), int(s)): i for i, (c, s) in enumerate(zip(chosen.concept, chosen.style, strict=True))}
    wanted = [[(drawings.slugs.index(c), drawings.styles.index(s)) for s in CAPTION_STYLES] for c in slugs]
    missing = [slug for slug, pairs in zip(slugs, wanted, strict=True) if any(pair not in rows for pair in pairs)]
    if missing:
        raise ValueError(f"{missing} are not drawn in all of {CAPTION_STYLES}")
    return RealArt(chosen.on_background(), np.array([[rows[pair] for pair in pairs] for pairs in wanted]))


def restrict(judge: Judge, slugs: Sequence[str]) -> Judge:
    """The same judge over these classes alone, so that it must name one of them."""
    rows = [judge.slugs.index(slug) for slug in slugs]
    network, head = copy.deepcopy(judge.network), judge.network.head
    network.head = nn.Linear(head.in_features, len(rows))
    with torch.no_grad():
        network.head.weight.copy_(head.weight[rows])
        network.head.bias.copy_(head.bias[rows])
    return Judge(network.eval(), tuple(slugs))


def derangement(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random permutation of 0 .. count - 1 that leaves nothing in its place."""
    if count < 2:
        raise ValueError(f"{count} things cannot all change places")
    while True:  # one permutation in e, about 2.7, will do
        order = rng.permutation(count)
        if not (order == np.arange(count)).any():
            return order


def chance_bounds(classes: int, pictures: int) -> tuple[float, float]:
    """Three standard errors either side of the share 1 / classes that a guess gets right."""
    share = 1 / classes
    error = 3 * (share * (1 - share) / pictures) ** 0.5
    return max(0.0, share - error), min(1.0, share + error)


def judged(
    found: NDArray[np.int64], requests: Sequence[Request], names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Shares of found [N], places in names, that are right: of all, per style, per concept, and under both controls.

    Shuffling the prompts among the pictures leaves exactly chance. Giving each concept's pictures another concept's
    prompt (a derangement) leaves less than chance, the less the better the model, so it has an upper bound only.
    """
    concept, style = (np.array([getattr(r, key) for r in requests]) for key in ("concept", "style"))
    right, rng = found == concept, np.random.default_rng(seed)
    low, high = chance_bounds(len(names), len(found))
    shuffled = float((found == rng.permutation(concept)).mean())
    deranged = float((found == derangement(len(names), rng)[concept]).mean())
    return {
        "classes": len(names),
        "accuracy": float(right.mean()),
        "per_style": {word: float(right[style == i].mean()) for i, word in enumerate(CAPTION_STYLES)},
        "per_concept": {name: float(right[concept == i].mean()) for i, name in enumerate(names)},
        "chance": 1 / len(names),
        "chance_bounds": [low, high],
        "shuffled": shuffled,
        "deranged": deranged,
        "controls_at_chance": low <= shuffled <= high and deranged <= high,
        "mistakes": [
            {"prompt": r.prompt, "seed": r.seed, "judged": names[k]}
            for r, k in zip(requests, found, strict=True)
            if k != r.concept
        ],
    }


def nearest(
    pictures: Pictures, references: Pictures, chunk: int = 512
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of pictures [N, H, W, 3] the nearest of references [M, H, W, 3] and their RMS distance in levels."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    best, far = np.zeros(len(flat), np.int64), np.full(len(flat), np.inf, np.float32)
    for start in range(0, len(references), chunk):
        part = references[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float32)
        square = (flat**2).sum(1)[:, None] - 2 * flat @ part.T + (part**2).sum(1)
        found = square.argmin(1)
        closer = square.min(1) < far
        best[closer], far[closer] = found[closer] + start, square.min(1)[closer]
    return best, np.sqrt(np.maximum(far, 0) / flat.shape[1])


def style_obeyed(pictures: Pictures, requests: Sequence[Request], art: RealArt) -> float:
    """Share of pictures whose nearest among their concept's own drawings is the one in the style asked for."""
    own = [art.pictures[art.row[request.concept]] for request in requests]
    found = [nearest(picture[None], three)[0][0] for picture, three in zip(pictures, own, strict=True)]
    return float(np.mean(np.array(found) == [request.style for request in requests]))


def corner_distance(pictures: Pictures) -> NDArray[np.float64]:
    """How far the four corner pixels of each picture are from white, in levels on average: float64 [N]."""
    return (255.0 - pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]]).mean((1, 2))


def whiteness(pictures: Pictures, own: Pictures) -> dict[str, float]:
    """The corners of pictures whose own real drawing, in own [N, H, W, 3], has white ones."""
    far = corner_distance(pictures[corner_distance(own) < 1])
    near = float((far <= 0.03 * 255).mean())
    return {"pictures": len(far), "mean_levels": float(far.mean()), "share_within_3_percent": near}


def measure(
    pictures: Pictures, requests: Sequence[Request], concepts: Sequence[Concept], judge: Judge, art: RealArt
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """All figures that need pictures, and the place of each picture's nearest real drawing."""
    own = art.row[[r.concept for r in requests], [r.style for r in requests]]
    found, far = nearest(pictures, art.pictures)
    figures = {
        "judge": judged(judge.predict(pictures), requests, [concept.name for concept in concepts]),
        "style_obeyed": style_obeyed(pictures, requests, art),
        "white": whiteness(pictures, art.pictures[own]),
        "nearest": {
            "among": len(art.pictures),
            "is_the_one_asked_for": float((found == own).mean()),
            "median_rms_levels": float(np.median(far)),
        },
    }
    return figures, found


def describe(model: TextToImageModel, folder: Path, drawings: Drawings) -> dict[str, Any]:
    """What the model is, what it was trained with, and how well its autoencoder does on held-out drawings."""
    spec, vae = model.spec, load_vae(folder)
    first, second = model.conditioner.towers
    networks = {**model.denoisers, "vae": vae, "text_encoder": first, "text_encoder_2": second}
    held_out = autoencoder.on_white(autoencoder.split(drawings).held_out)
    return {
        "model": folder.resolve().name,
        "defaults": {"steps": spec.steps, "guidance": spec.guidance, "solver": spec.solver, "size": spec.sizes[0]},
        "parameters": {
            n: sum(p.numel() for p in m.parameters()) for n, m in networks.items() if isinstance(m, nn.Module)
        },
        "autoencoder_psnr_db": autoencoder.psnr(vae, held_out),
        "training": {
            "autoencoder": asdict(autoencoder.RECIPE)
            | {"batch": autoencoder.BATCH, "kl_weight": autoencoder.KL_WEIGHT, "held_out": autoencoder.HELD_OUT},
            "diffusion": asdict(diffusion.RECIPE)
            | {"batch": diffusion.BATCH, "caption_dropout": diffusion.CAPTION_DROPOUT},
        },
        "weights_sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.safetensors"))
        },
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def ready_judge(path: Path | None, drawings: Drawings, steps: int) -> Judge:
    """The judge in path; a newly trained one, kept in path if that is given, when there is none yet."""
    if path is not None and path.exists():
        return Judge.load(path)
    judge = train_judge(drawings, [concept.slug for concept in CONCEPTS], steps)
    if path is not None:
        judge.save(path)
    return judge


def write_sheet(path: Path, pictures: Pictures, art: RealArt, found: NDArray[np.int64], names: Sequence[str]) -> None:
    """The first picture of each concept and style beside its nearest drawing; pictures come in the order of `ask`."""
    cells = (len(names), len(CAPTION_STYLES), -1, *pictures.shape[1:])
    first, beside = (x.reshape(cells)[:, :, 0] for x in (pictures, art.pictures[found]))
    save_png(contact_sheet(names, first, beside), path, SHEET_BYTES)


def main(
    model: Path = typer.Option(..., help="Folder of the model to measure."),
    artwork: Path = typer.Option(..., help="Where the artwork is, or is to be downloaded to (needs npm)."),
    out: Path = typer.Option(..., help="Folder for README.md, evaluation.json, samples.png; ../NOTICE beside it."),
    judge: Path | None = typer.Option(None, help="The judge's file; trained, and kept there, when it is missing."),
    judge_steps: int = typer.Option(4500, help="Steps to train a judge for."),
    per_pair: int = typer.Option(2, min=1, help="Pictures of each concept in each style."),
    first_seed: int = typer.Option(0, min=0, help="Seed of the first picture; the others count up."),
    first: int | None = typer.Option(None, min=2, help="Only so many concepts, for a trial."),
    hours: float | None = typer.Option(None, help="Hours that the training took, for the card."),
    machine: str = typer.Option("2 CPU cores", help="What it was trained on, for the card."),
    blind: tuple[int, Path] = typer.Option((0, Path("blind.png")), help="Write so many pictures as a blind test."),
) -> None:
    """Measure a model, write its card, and fail when a control is not at chance."""
    download(artwork)
    drawings = render(artwork)
    referee = ready_judge(judge, drawings, judge_steps)
    real = real_accuracy(referee, drawings)
    concepts = by_slug(list(kept_concepts(real)[:first]))
    slugs, names = [c.slug for c in concepts], [c.name for c in concepts]
    referee, art = restrict(referee, slugs), real_art(drawings, slugs)
    network = load(model)
    requests = ask(concepts, per_pair, first_seed)
    pictures = develop(network, requests)
    figures, found = measure(pictures, requests, concepts, referee, art)
    restricted = float(np.mean(list(real_accuracy(referee, drawings).values())))
    figures["judge"] |= {"trained_on": TRAIN_STYLES, "real_accuracy": restricted}
    left_out = {by_slug([slug])[0].name: share for slug, share in real.items() if slug not in kept_concepts(real)}
    trial = {"hours": hours, "machine": machine, "per_pair": per_pair, "first_seed": first_seed, "only_first": first}
    report = {**describe(network, model, drawings), **trial, "pictures": len(pictures), **figures, "left_out": left_out}
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(report), encoding="utf-8")
    (out.parent / "NOTICE").write_text(notice(), encoding="utf-8")
    write_sheet(out / "samples.png", pictures, art, found, names)
    if blind[0]:
        write_blind(blind[1], pictures, np.array([r.concept for r in requests]), names, blind[0])
    print(f"{len(pictures)} pictures, judge {figures['judge']['accuracy']:.3f}; written to {out}")
    if not figures["judge"]["controls_at_chance"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
