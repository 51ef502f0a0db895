"""What a reader sees of a trained model: its card, its contact sheet, the attribution of its data, a blind test.

The card is written from ``evaluation.json`` alone, so that a blind look, which comes later, can be added:

    python -m models.training.card models/zoo/emoji-xl --blind "91 of 100"
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.training.artwork import PACKAGES, Package

GAP, LABEL = 4, 14  # pixels between pictures, and for a line of text
GREY = (232, 232, 232)
CREDITS = {  # package: the work, who made it, where it lives
    "unicode-emoji-json": ("emoji names", "2019 Mu-An Chiou", "github.com/muan/unicode-emoji-json"),
    "emojilib": ("emoji keywords", "2014 Mu-An Chiou", "github.com/muan/emojilib"),
    "@lobehub/fluent-emoji-3d": ("Fluent Emoji", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji"),
    "@iconify-json/noto": ("Noto Emoji", "Google", "github.com/googlefonts/noto-emoji"),
    "@iconify-json/twemoji": ("Twemoji", "Twitter and contributors", "github.com/jdecked/twemoji"),
    "@iconify-json/fluent-emoji-flat": ("Fluent Emoji", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji"),
    "@iconify-json/noto-v1": ("Noto Emoji, first version", "Google", "github.com/googlefonts/noto-emoji"),
    "@iconify-json/emojione": ("EmojiTwo", "EmojiTwo and EmojiOne contributors", "github.com/EmojiTwo/emojitwo"),
    "@iconify-json/fxemoji": ("FxEmoji", "2015 Mozilla Foundation", "github.com/mozilla/fxemoji"),
    "@iconify-json/fluent-emoji": ("Fluent Emoji", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji"),
}
LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}
MIT_TEXT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
NOTICE_INTRO = """\
The models in this folder were trained on these works. The drawings were rendered to small pictures, moved, mirrored and
laid on colours; the contact sheets beside the models show some of them, reduced. Their makers do not endorse the
models. The autoencoders saw all drawings listed here, the text-to-image models only the styles that their cards name.
"""
LIMITS = """\
- It recalls and restyles: it was trained on one drawing of each thing in each style, and mostly gives that drawing
  back, softer. The contact sheet shows the nearest drawing beside each sample. Do not take it for a model that invents.
- 64x64 pixels, one thing on white. No scenes, no counting, no people, no text, no photographs.
- English names only. Outside the list below, other styles and longer sentences included, nothing was measured and
  nothing is promised.
- The judge learnt from the same kind of art in other styles. It says whether a thing can be told from the other things
  on the list, not whether the picture is pretty.
"""


def notice(packages: Sequence[Package] = PACKAGES) -> str:
    """The attribution that goes with the weights. Raises KeyError for a package that CREDITS does not know."""
    parts = [NOTICE_INTRO]
    for package in packages:
        work, maker, home = CREDITS[package.name]
        use = f"drawings, style {package.style}" if package.style else "words"
        parts += [f"{work} ({use})", f"  Copyright {maker}; https://{home}"]
        parts += [f"  {package.licence}, {LICENCES[package.licence]}"]
        parts += [f"  from the npm package {package.name} {package.version}"]
        if work == "FxEmoji":
            parts += [f"  Its makers license the visual design as CC-BY-4.0, {LICENCES['CC-BY-4.0']}"]
        parts += [""]
    return "\n".join([*parts, "The MIT licence, for the works above that are under it:", "", MIT_TEXT])


def contact_sheet(
    names: Sequence[str], samples: NDArray[np.uint8], nearest: NDArray[np.uint8], per_block: int = 15
) -> Image.Image:
    """Each concept a pair of columns, the sample and its nearest training drawing, and each style a row.

    Both arrays are uint8 [C, S, H, W, 3]; after per_block concepts a new block of rows begins.
    """
    pairs = np.concatenate([samples, nearest], axis=3)  # side by side
    concepts, styles, height, width = pairs.shape[:4]
    columns, blocks = min(per_block, concepts), -(-concepts // per_block)
    step_x, step_y = width + GAP, styles * height + LABEL + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, blocks * step_y + GAP), GREY)
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        x, y = GAP + i % per_block * step_x, GAP + i // per_block * step_y
        draw.text((x, y), name, "black", ImageFont.load_default(11))
        sheet.paste(Image.fromarray(np.concatenate(pairs[i])), (x, y + LABEL))
    return sheet


def save_png(image: Image.Image, path: Path, most_bytes: int) -> None:
    """Write a PNG of at most most_bytes, with as many colours as fit. Raises ValueError when 16 are too many."""
    for colours in (0, 256, 128, 64, 32, 16):
        buffer = io.BytesIO()
        (image.quantize(colours, dither=Image.Dither.NONE) if colours else image).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= most_bytes:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"{path} does not fit in {most_bytes} bytes")


def blind_grid(pictures: NDArray[np.uint8], columns: int = 10, scale: int = 2) -> Image.Image:
    """Pictures uint8 [N, H, W, 3], enlarged, in a grid with nothing but their numbers, which begin at 1."""
    side = pictures.shape[1] * scale
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (side + GAP) + GAP, rows * (side + LABEL + GAP) + GAP), GREY)
    draw = ImageDraw.Draw(grid)
    for i, picture in enumerate(pictures):
        x, y = GAP + i % columns * (side + GAP), GAP + i // columns * (side + LABEL + GAP)
        draw.text((x, y), str(i + 1), "black", ImageFont.load_default(11))
        grid.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (x, y + LABEL))
    return grid


def write_blind(
    path: Path,
    pictures: NDArray[np.uint8],
    asked: NDArray[np.int64],
    names: Sequence[str],
    count: int,
    seed: int = 0,
) -> None:
    """A test for someone who has not seen the prompts: path (.png), and beside it .choices.json and .answers.json.

    asked [N] says which of names each picture should be. Raises ValueError with fewer than ten names.
    """
    if len(names) < 10:
        raise ValueError(f"a ten-way choice needs ten names, got {len(names)}")
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(pictures))[:count]
    choices, answers = {}, {}
    for number, i in enumerate(picked, 1):
        right = int(asked[i])
        others = rng.permutation([k for k in range(len(names)) if k != right])[:9]
        choices[number] = [names[k] for k in rng.permutation([right, *others])]
        answers[number] = names[right]
    path.parent.mkdir(parents=True, exist_ok=True)
    blind_grid(pictures[picked]).save(path)
    path.with_suffix(".choices.json").write_text(json.dumps(choices, indent=1) + "\n")
    path.with_suffix(".answers.json").write_text(json.dumps(answers, indent=1) + "\n")


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
({", ".join(report["judge"]["per_style"])}) become a picture of {size} pixels. It exists to have weights that are free,
small and honest, and that take the same path through the server as SDXL.

![One sample of each concept and style, with its nearest training drawing to the right of it](samples.png)

## How to use

    darkroom generate "cat 3d" --model {name} -o cat.png

The style is the prompt's last word. With diffusers:

    from diffusers import StableDiffusionXLPipeline
    pipeline = StableDiffusionXLPipeline.from_pretrained("models/zoo/{name}")
    picture = pipeline("cat 3d", num_inference_steps={defaults["steps"]}, guidance_scale={defaults["guidance"]},
                       width={defaults["size"][0]}, height={defaults["size"][1]}).images[0]
"""
    parameters = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in report["parameters"].items())
    recipe = [f"- {part}: " + ", ".join(f"{k} {v}" for k, v in content.items()) for part, content in made.items()]
    hours = f" in {report['hours']:g} hours" if report["hours"] else ""
    where = [f"Parameters: {parameters}. Trained on {report['machine']}{hours}.", "", *recipe]
    sections = {
        "Quality": _quality(report),
        "Limits": LIMITS.rstrip(),
        "What it can draw": _concepts(report),
        "Data": _data(),
        "Training": "\n".join(where),
    }
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def _quality(report: Mapping[str, Any]) -> str:
    judge, defaults, nearest, white = (report[key] for key in ("judge", "defaults", "nearest", "white"))
    low, high = judge["chance_bounds"]
    rows = {
        "named rightly by the judge": percent(judge["accuracy"]),
        **{f"... in style {style}": percent(share) for style, share in judge["per_style"].items()},
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
    }
    table = "\n".join(f"| {what} | {figure} |" for what, figure in rows.items())
    trial = "**A trial on the first few concepts only: these figures flatter.** " if report.get("only_first") else ""
    return f"""\
{trial}{report["pictures"]} pictures, {report["per_pair"]} for each of {judge["classes"]} concepts in each style,
prompts "NAME STYLE", seeds from {report["first_seed"]} on; {defaults["steps"]} steps of {defaults["solver"]}, guidance
{defaults["guidance"]}. The judge is a small classifier over exactly these concepts. It learnt them from drawings in
other styles ({", ".join(judge["trained_on"])}) and never saw the styles that it judges.

| measure | result |
| --- | --- |
{table}

All figures, with versions, weight hashes and every picture that the judge got wrong: `evaluation.json`."""


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
        work, maker, home = CREDITS[package.name]
        cells = (work, package.style or "-", maker, package.licence, f"{package.name} {package.version}")
        rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(rows)
    return f"""\
| work | style | by | licence | npm package |
| --- | --- | --- | --- | --- |
{table}

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
