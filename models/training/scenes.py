"""Procedural scenes: drawings placed, sized, counted, tinted and laid on a background, with a caption that says so.

They teach what single drawings cannot: that words about place, number and colour matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.training.artwork import Drawings, composite
from models.training.concepts import Concept, with_article

COLOURS = {
    "red": (220, 45, 45),
    "orange": (245, 145, 35),
    "yellow": (250, 220, 60),
    "green": (70, 170, 80),
    "blue": (60, 120, 225),
    "purple": (140, 75, 190),
    "pink": (250, 160, 195),
    "brown": (130, 85, 50),
    "gray": (150, 150, 150),
    "black": (25, 25, 25),
}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
PLACES = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the center": (0, 0),
}
"""Direction from the middle of the picture, in steps of a quarter of its side."""
COUNTS = {"two": ((-1, 0), (1, 0)), "three": ((-1, 1), (1, 1), (0, -1))}
SMALL, LARGE = 0.5, 0.9
"""Side of a thing as a part of the picture's."""
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first of two things stands; the second stands opposite."""

T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """One drawing in a scene: its row in the table of drawings, where it stands, and how large it is."""

    row: int
    place: tuple[int, int]
    """Direction from the middle, in quarters of the side."""
    size: float
    tint: str = ""


@dataclass(frozen=True)
class Scene:
    """What is drawn, and what the caption says of it."""

    caption: str
    things: tuple[Thing, ...]
    background: str = "white"


@dataclass(frozen=True)
class Cast:
    """What scenes choose from: rows of one table of drawings, each with its concept and style word."""

    rows: Sequence[int]
    concepts: Sequence[Concept]
    styles: Sequence[str]


def cast(drawings: Drawings, concepts: Sequence[Concept]) -> Cast:
    """Every drawing of the table whose concept is among ``concepts``."""
    by_slug = {concept.slug: concept for concept in concepts}
    named = [(row, by_slug.get(drawings.slugs[c])) for row, c in enumerate(drawings.concept)]
    chosen = [(row, concept) for row, concept in named if concept is not None]
    styles = [drawings.styles[drawings.style[row]] for row, _ in chosen]
    return Cast([row for row, _ in chosen], [concept for _, concept in chosen], styles)


def random_scenes(actors: Cast, count: int, seed: int) -> tuple[Scene, ...]:
    """``count`` scenes, always the same ones for the same cast and seed."""
    rng = np.random.default_rng(seed)
    return tuple(random_scene(actors, rng) for _ in range(count))


def random_scene(actors: Cast, rng: np.random.Generator) -> Scene:
    """One scene: a placed thing, a tinted thing, several of a kind, or two things side by side or stacked."""
    first = int(rng.integers(len(actors.rows)))
    concept, style, row = actors.concepts[first], actors.styles[first], actors.rows[first]
    kind = rng.random()
    if kind < 0.45:
        words, place = _pick(rng, PLACES)
        large = words == "in the center" and rng.random() < 0.5
        size = "large" if large else "small"
        phrase = f"{noun_phrase(concept, size)} {words}"
        things: tuple[Thing, ...] = (Thing(row, place, LARGE if large else SMALL),)
    elif kind < 0.65 and not COLOURS.keys() & set(concept.name.split()):
        tint = TINTS[rng.integers(len(TINTS))]
        phrase, things = noun_phrase(concept, tint), (Thing(row, (0, 0), LARGE, tint),)
    elif kind < 0.8:
        count, places = _pick(rng, COUNTS)
        phrase, things = f"{count} {plural(concept.name)}", tuple(Thing(row, place, SMALL) for place in places)
    else:
        phrase, things = _pair(actors, first, rng)
    grounds = [colour for colour in COLOURS if colour != things[0].tint]
    background = "white" if rng.random() < 0.4 else str(rng.choice(grounds))
    unsaid = background == "white" and rng.random() < 0.7
    return Scene(caption(phrase, "" if unsaid else background, style), things, background)


def caption(phrase: str, background: str, style: str) -> str:
    """ "a small cat at the top on a red background 3d"; without the background where that is the empty string."""
    ground = f" on {with_article(background)} background" if background else ""
    return f"{phrase}{ground} {style}"


def draw(scene: Scene, drawings: Drawings) -> NDArray[np.uint8]:
    """The scene as a picture: uint8 [S, S, 3]."""
    side = drawings.pixels.shape[1]
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = (255, 255, 255) if scene.background == "white" else COLOURS[scene.background]
    for thing in scene.things:
        small = resize(drawings.pixels[thing.row], round(side * thing.size))
        if thing.tint:
            small = tinted(small, COLOURS[thing.tint])
        _paste(picture, small, thing.place)
    return picture


def corner(side: int, size: int, place: tuple[int, int]) -> tuple[int, int]:
    """x and y of the upper left pixel of a thing of ``size`` pixels in a picture of ``side``."""
    x, y = ((side - size) // 2 + step * side // 4 for step in place)
    return min(max(x, 0), side - size), min(max(y, 0), side - size)


def resize(premultiplied: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [S, S, 4] premultiplied -> [side, side, 4], averaged."""
    x = torch.from_numpy(premultiplied).permute(2, 0, 1)[None].float()
    small = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    resized: NDArray[np.uint8] = small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return resized


def tinted(premultiplied: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The drawing in shades of one colour: its brightness runs from black through the colour to white."""
    alpha = premultiplied[..., 3:].astype(np.float64) / 255
    light = (premultiplied[..., :3] @ np.array([0.3, 0.59, 0.11]))[..., None] / 255 / np.maximum(alpha, 1e-3)
    middle = 0.6
    target = np.array(colour, np.float64)
    dark, bright = target * light / middle, target + (255 - target) * (light - middle) / (1 - middle)
    shaded = np.where(light < middle, dark, bright).clip(0, 255) * alpha
    return np.concatenate([shaded.round(), premultiplied[..., 3:]], -1).astype(np.uint8)


def plural(noun: str) -> str:
    """The plural of an English noun by the regular rules, which irregular nouns follow here too ("mouses")."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun if noun.endswith("s") and not noun.endswith(("ss", "us")) else f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def noun_phrase(concept: Concept, adjective: str) -> str:
    """ "a small cat", without the article where the noun takes none."""
    plain = with_article(concept.name) == concept.name
    return f"{adjective} {concept.name}" if plain else with_article(f"{adjective} {concept.name}")


def pair_phrase(first: Concept, relation: str, second: Concept) -> str:
    """ "a cat left of an owl", with one of :data:`RELATIONS`."""
    return f"{with_article(first.name)} {relation} {with_article(second.name)}"


def pair(first: int, second: int, relation: str) -> tuple[Thing, Thing]:
    """The drawings in two rows of the table, as one of :data:`RELATIONS` has them."""
    x, y = RELATIONS[relation]
    return Thing(first, (x, y), SMALL), Thing(second, (-x, -y), SMALL)


def _pair(actors: Cast, first: int, rng: np.random.Generator) -> tuple[str, tuple[Thing, ...]]:
    """Two things of one style, left and right or above and below."""
    others = [i for i, style in enumerate(actors.styles) if style == actors.styles[first]]
    second = others[int(rng.integers(len(others)))]
    relation, _ = _pick(rng, RELATIONS)
    phrase = pair_phrase(actors.concepts[first], relation, actors.concepts[second])
    return phrase, pair(actors.rows[first], actors.rows[second], relation)


def _pick(rng: np.random.Generator, table: Mapping[str, T]) -> tuple[str, T]:
    keys = list(table)
    key = keys[int(rng.integers(len(keys)))]
    return key, table[key]


def _paste(picture: NDArray[np.uint8], thing: NDArray[np.uint8], place: tuple[int, int]) -> None:
    """Lay a premultiplied drawing into the picture, its middle ``place`` quarters of the side from the middle."""
    x, y = corner(len(picture), len(thing), place)
    window = picture[y : y + len(thing), x : x + len(thing)]
    window[:] = composite(thing, window)
