"""The model card, written from ``evaluation.json`` alone, so that a blind look, which comes later, can be added:

python -m models.training.card models/zoo/emoji-xl --blind "91 of 100"
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from models.training.artwork import PACKAGES
from models.training.notice import CREDITS

LIMITS = """\
- It recalls and restyles: it was trained on one drawing of each thing in each style, and mostly gives that drawing
  back, softer. The contact sheet shows the nearest drawing beside each sample. Do not take it for a model that invents.
- 64x64 pixels. Scenes are what the tables say: one thing somewhere on a plain colour or in a tint, two or three of a
  kind, two things side by side or stacked. No people, no text, no photographs.
- English names only. Outside the list below, other styles and longer sentences included, nothing was measured and
  nothing is promised.
- The judge learnt from the same kind of art in other styles. It says whether a thing can be told from the other things
  on the list, not whether the picture is pretty. How well it knows small and tinted things, its figures on real scenes
  say.
- Pairs of thing and style that were held out are unseen by the text-to-image networks. The autoencoder, which knows no
  names, saw most of the drawings of all styles.
"""
SCENE_KINDS = {
    "placed": "A small thing somewhere on a colour",
    "tinted": "A thing in a colour",
    "counted": "Two or three of a kind",
    "paired": "Two things, one left of, right of, above or below the other",
}
CHECKS = {
    "background": "background, nearest of eleven colours",
    "place": "place, nearest of five",
    "background and place": "both",
    "thing": "the thing, named by the judge",
    "tint": "hue, nearest of seven",
    "number": "number of connected things",
    "first": "first thing where it should be, named by the judge",
    "second": "second thing where it should be",
    "both": "both where they should be",
    "changed places": "both, but each in the other's place",
}


def percent(share: float) -> str:
    """0.12345 as "12.3 %"."""
    return f"{100 * share:.1f} %"


def card(report: Mapping[str, Any]) -> str:
    """The model card, in Markdown, from the content of ``evaluation.json``."""
    name, made, defaults = report["model"], report["training"], report["defaults"]
    size = "x".join(map(str, defaults["size"]))
    head = f"""\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {name}

A small text-to-image model in the SDXL folder format, trained from nothing for Darkroom: a thing's name and a style
({", ".join(report["judge"]["per_style"])}) become a picture of {size} pixels, and so do a few words about place, colour
and number. It exists to have weights that are free, small and honest, and that take the same path through the server
as SDXL.

![A sample of things in each style, with the nearest real drawing to the right of it](samples.png)

A style named behind a thing was held out: training saw the thing and the style, but not this thing in it.

![Scenes and their prompts](scenes.png)

## How to use

    darkroom generate "cat 3d" --model {name} -o cat.png
    darkroom generate "a small cat on the left on a blue background 3d" --model {name} -o scene.png

The style is the prompt's last word. With diffusers:

    from diffusers import StableDiffusionXLPipeline
    pipeline = StableDiffusionXLPipeline.from_pretrained("models/zoo/{name}")
    picture = pipeline("cat 3d", num_inference_steps={defaults["steps"]}, guidance_scale={defaults["guidance"]},
                       width={defaults["size"][0]}, height={defaults["size"][1]}).images[0]
"""
    parameters = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in report["parameters"].items())
    recipe = [f"- {part}: " + ", ".join(f"{k} {v}" for k, v in content.items()) for part, content in made.items()]
    where = [f"Parameters: {parameters}. Trained on {report['trained_on']}.", "", *recipe]
    sections = {
        "Quality": _quality(report),
        "Unseen pairs": _held_out(report),
        "Scenes": _scenes(report),
        "Limits": LIMITS.rstrip(),
        "What it can draw": _concepts(report),
        "Data": _data(),
        "Training": "\n".join(where),
    }
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quality(report: Mapping[str, Any]) -> str:
    judge, defaults, nearest, white = (report[key] for key in ("judge", "defaults", "nearest", "white"))
    low, high = judge["chance_bounds"]
    rows = {
        "named rightly by the judge": percent(judge["accuracy"]),
        **{f"... in style {style}": percent(share) for style, share in judge["per_style"].items()},
        **{f"... in {steps} steps": percent(share) for steps, share in report.get("other_steps", {}).items()},
        "the judge on real drawings of these concepts": percent(judge["real_accuracy"]),
        "blind look, choice of ten": report.get("blind") or "not done yet",
        "control: prompts shuffled among pictures": f"{percent(judge['shuffled'])} "
        f"(chance {percent(judge['chance'])}, within 3 standard errors: {percent(low)} to {percent(high)})",
        "control: every prompt another concept's": f"{percent(judge['deranged'])} (at most {percent(high)})",
        "style nearest among the concept's three (chance 33 %)": percent(report["style_obeyed"]),
        "corners within 3 % of white where the drawing's are white": f"{percent(white['share_within_3_percent'])} "
        f"(mean distance {white['mean_levels']:.2f} of 255)",
        "nearest drawing is the very one asked for": f"{percent(nearest['is_the_one_asked_for'])} "
        f"(of {nearest['among']}; median RMS distance {nearest['median_rms_levels']:.1f} of 255)",
        "autoencoder on held-out drawings": f"{report['autoencoder_psnr_db']:.2f} dB",
        "... with the small decoder": f"{report['small_decoder_psnr_db']:.2f} dB",
    }
    trial = "**A trial on the first few concepts only: these figures flatter.** " if report.get("only_first") else ""
    return f"""\
{trial}{report["pictures"]} pictures, {report["per_pair"]} for each of {judge["classes"]} concepts in each style that
training showed it in, prompts "NAME STYLE", seeds from {report["first_seed"]} on; {defaults["steps"]} steps of
{defaults["solver"]}, guidance {defaults["guidance"]}. The judge is a small classifier over exactly these concepts. It
learnt them from drawings in other styles ({", ".join(judge["trained_on"])}) and never saw the styles that it judges.

{table(("measure", "result"), list(rows.items()))}

All figures, with versions, weight hashes and every picture that the judge got wrong: `evaluation.json`."""


def _held_out(report: Mapping[str, Any]) -> str:
    unseen = report["held_out"]
    if unseen is None:
        return "No pair of thing and style among the concepts measured was held out."
    shuffled = f"{percent(unseen['shuffled'])} (at most {percent(unseen['at_most'])})"
    rows = (
        ("named rightly by the judge", percent(unseen["accuracy"]), percent(unseen["accuracy_in_seen_styles"])),
        ("style obeyed", percent(unseen["style_obeyed"]), percent(unseen["style_obeyed_in_seen_styles"])),
        ("nearest drawing is the unseen one asked for", percent(unseen["nearest_is_the_unseen_drawing"]), ""),
        ("nearest drawing is the same thing in a style seen", percent(unseen["nearest_is_a_seen_drawing_of_it"]), ""),
        ("control: prompts shuffled", shuffled, ""),
    )
    return f"""\
{report["training"]["second stage"]["held_out_pairs"]} pairs of thing and style were kept from training, alone and in
scenes; {len(unseen["pairs"])} of them are among the concepts counted here: {", ".join(unseen["pairs"])}.
{unseen["pictures"]} pictures of these, left out of the figures above.

{table(("measure", "unseen pairs", "same things, styles seen"), rows)}"""


def _scenes(report: Mapping[str, Any]) -> str:
    parts = [
        "Prompts that training never used, over the concepts and pairs that it did see. Backgrounds, places, hues and "
        'numbers are measured by plain arithmetic on the pixels. "Real" is the same measure on scenes drawn from the '
        "artwork to the same prompts, the most that it can say; shuffled prompts must come out at chance."
    ]
    for kind, figures in report["scenes"].items():
        rows = [
            (CHECKS[name], *map(percent, (check["share"], check["real"], check["shuffled"], check["at_most"])))
            for name, check in figures["checks"].items()
        ]
        head = ("right", report["model"], "real", "shuffled", "chance is at most")
        parts += [
            f'{SCENE_KINDS[kind]}: {figures["pictures"]} pictures, such as "{figures["example"]}".',
            table(head, rows),
        ]
    parts += ["Numbers are asked only of things that the same measure counts rightly in real scenes."]
    return "\n\n".join(parts)


def _concepts(report: Mapping[str, Any]) -> str:
    per_concept, left_out = report["judge"]["per_concept"], report["left_out"]
    kept = ", ".join(f"{name} {100 * share:.0f}" for name, share in per_concept.items())
    out = ", ".join(f"{name} {100 * share:.0f}" for name, share in left_out.items()) or "none"
    return f"""\
{len(per_concept)} concepts, each with the percentage of its pictures that the judge named rightly: {kept}.

Trained but not counted, because the judge names fewer than 90 % of their real drawings (its share behind the name):
{len(left_out)} concepts, {out}."""


def _data() -> str:
    rows = []
    for package in PACKAGES:
        work, maker, _ = CREDITS[package.name]
        rows.append((work, package.style or "-", maker, package.licence, f"{package.name} {package.version}"))
    return f"""\
{table(("work", "style", "by", "licence", "npm package"), rows)}

The autoencoder saw all eight styles, the text-to-image networks only those named at the top.
Attribution: `../NOTICE`."""


def main(folder: Path, blind: str = typer.Option("", help='Result of a blind look, such as "91 of 100".')) -> None:
    """Write the card of a model folder again from its evaluation.json."""
    path = folder / "evaluation.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    if blind:
        report["blind"] = blind
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(report), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
