"""The model card of the image-to-video model, written from ``evaluation.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.training.animations import ANIMATIONS
from models.training.artwork import ARTWORK
from models.training.card import percent, table
from models.training.notice import CREDITS

LIMITS = """\
- 64x64 pixels, eight frames, drawings on plain grounds. It was trained on emoji and on nothing else: photographs were
  not tried, and nothing is promised for them.
- It makes a picture swing, hop, turn, drift, swell, or move as Microsoft's animated emoji do, as the seed will have it.
  It takes no words. How fast things move is asked for by the motion bucket; which way they move is not.
- Fine detail is lost in motion. The autoencoder's decoder softens everything.
- Frame rate is told to the network as published models are told it; whether it is obeyed was not measured.
- Speeds are measured by matching blocks of pixels, which is right to about a third of a pixel on clips of known flow.
"""


def card(report: Mapping[str, Any]) -> str:
    """The model card, in Markdown, from the content of ``evaluation.json``."""
    made = report["training"].items()
    parameters = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in report["parameters"].items())
    recipe = "\n".join(f"- {part}: " + ", ".join(f"{k} {v}" for k, v in content.items()) for part, content in made)
    sections = {
        "How to use": _use(report),
        "Quality": _quality(report),
        "Limits": LIMITS.rstrip(),
        "Data": _data(),
        "Training": f"Parameters: {parameters}. Trained on {report['trained_on']}.\n\n{recipe}",
    }
    return _head(report) + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def _head(report: Mapping[str, Any]) -> str:
    return f"""\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-video
---
# {report["model"]}

A small image-to-video model in the format of Stable Video Diffusion, trained from nothing for Darkroom: a drawing of
{"x".join(map(str, report["defaults"]["size"]))} pixels becomes a clip of {report["frames"]} frames. Its latent space is
that of emoji-xl. It exists to have weights that are free, small and honest, and that take the same path through the
server as SVD.

![Inputs, on the left, and the frames made of them](samples.png)
"""


def _use(report: Mapping[str, Any]) -> str:
    name, defaults = report["model"], report["defaults"]
    return f"""\
    darkroom animate picture.png --model {name} -o clip.mp4

With diffusers:

    from diffusers import StableVideoDiffusionPipeline
    pipeline = StableVideoDiffusionPipeline.from_pretrained("models/zoo/{name}")
    frames = pipeline(picture, width={defaults["size"][0]}, height={defaults["size"][1]}, num_frames={report["frames"]},
                      num_inference_steps={defaults["steps"]}, max_guidance_scale={defaults["guidance"]}).frames[0]"""


def _quality(report: Mapping[str, Any]) -> str:
    def row(label: str, read: str, control: str = "") -> tuple[str, str, str, str]:
        known, unseen = (_read(report[name], read) for name in ("known", "unseen"))
        return label, known, unseen, _read(report["known"], control) if control else ""

    rows = [
        row(
            "first frame, L1 from the decoder's own picture of the input",
            "first_frame_l1",
            "first_frame_l1_of_another_input",
        ),
        row("asked against measured motion, Spearman", "motion.spearman", "motion.spearman_of_another_clips_bucket"),
        row("bucket 0: mean change of a pixel a frame", "still.frame_change", "still.frame_change_when_moving"),
        row("bucket 127: mean speed, pixels a frame", "strong.pixels_a_frame"),
        row("bucket 127: share of clips over a pixel a frame", "strong.share_over_a_pixel"),
        row("frame order told from shuffled", "order.accuracy", "order.of_frozen_clips"),
        row("flicker of still regions", "flicker.generated", "flicker.still_clips_decoded"),
    ]
    head = ("measure", "styles seen", "styles unseen", "control")
    defaults = report["defaults"]
    note = (
        "Controls, in order: another input's picture; another clip's bucket; the same inputs at bucket 127; clips of "
        "one frozen frame; the input as a still clip, encoded and decoded."
    )
    return f"""\
{report["inputs"]} drawings of the styles that training saw, and as many of styles that neither the UNet nor the vision
tower saw. Seeds from {report["first_seed"]} on, {defaults["steps"]} steps of {defaults["solver"]}, guidance 1 to
{defaults["guidance"]} over the frames, pictures in [0, 1].

{table(head, rows)}

{note}

The classifier of frame order is a logistic regression on how the distance of two frames grows with the time between
them. It learnt from real clips and tells {percent(report["order_of_real_clips"])} of others rightly. Still regions are
the pixels, {percent(report["known"]["flicker"]["still_share_of_pixels"])} of all, that nothing moves over.

All figures, with versions and weight hashes: `evaluation.json`."""


def _read(figures: Mapping[str, Any], path: str) -> str:
    value: Any = figures
    for part in path.split("."):
        value = value[part]
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def _data() -> str:
    rows = []
    for package in (*ARTWORK, *ANIMATIONS):
        work, maker, _ = CREDITS[package.name]
        rows.append((work, package.style or "animated", maker, package.licence, f"{package.name} {package.version}"))
    return f"""\
{table(("work", "style", "by", "licence", "npm package"), rows)}

Attribution: `../NOTICE`. The rest of the motion is procedural: drawings that bounce, drift, pulse, spin and sway, with
a flow that is known exactly. The motion bucket is 64 times the mean speed in pixels a frame."""
