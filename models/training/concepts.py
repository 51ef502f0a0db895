"""The things that the shipped models can draw, and the captions that it learns for them.

Every concept is drawn in 3d, noto, twemoji and at least three other styles of `artwork`, and the styles agree about its
pose. Left out after looking at the drawings: people, symbols, whole families (clock faces, moons) and near doubles.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CAPTION_STYLES = ("3d", "noto", "twemoji")  # the styles that the shipped model draws
UNCOUNTABLE = {
    "fire",
    "corn",
    "sweetcorn",
    "maize",
    "popcorn",
    "bacon",
    "sushi",
    "honey",
    "chocolate",
    "confetti",
    "bowling",
    "table tennis",
    "anger",
    "bread",
    "cheese",
    "coffee",
    "pizza",
    "flame",
    "lightning",
}


@dataclass(frozen=True)
class Concept:
    """One thing: the slug of its Unicode name, its plain English name and up to three synonyms."""

    slug: str
    name: str
    synonyms: tuple[str, ...] = ()


CONCEPTS_FILE = Path(__file__).with_name("concepts.csv")


def read_concepts(path: Path = CONCEPTS_FILE) -> tuple[Concept, ...]:
    """The table of concepts: slug, name and synonyms, these separated by semicolons."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(Concept(row["slug"], row["name"], tuple(filter(None, row["synonyms"].split("; ")))) for row in rows)


CONCEPTS = read_concepts()
FIRST_CONCEPTS = CONCEPTS[:142]  # what training begins with; the rest joins in its second stage
HELD_OUT_PAIRS = 48
HELD_OUT = {
    (concept.slug, CAPTION_STYLES[i % len(CAPTION_STYLES)])
    for i, concept in enumerate(CONCEPTS[len(FIRST_CONCEPTS) :: 4][:HELD_OUT_PAIRS])
}
"""(slug, style) pairs that no training sees: the model knows the thing and the style, but not this thing in it."""


def captions(concept: Concept, style: str) -> list[str]:
    """Every caption of a drawing, name first: plain, with an article, and as "a picture of"; the style comes last.

    captions(cat, "3d") begins "cat 3d", "a cat 3d", "a picture of a cat 3d", then the same for each synonym.
    """
    found = []
    for word in (concept.name, *concept.synonyms):
        noun = with_article(word)
        # An uncountable or plural word is its own noun phrase, and would be listed twice.
        found += [f"{phrase} {style}" for phrase in dict.fromkeys((word, noun, f"a picture of {noun}"))]
    return found


def random_caption(concept: Concept, style: str, generator: np.random.Generator) -> str:
    """One of `captions`, the same one for the same state of the generator: half of the time one of the name's."""
    every = captions(concept, style)
    named = captions(Concept(concept.slug, concept.name), style)
    chosen = named if generator.random() < 0.5 else every
    return chosen[int(generator.integers(len(chosen)))]


def with_article(noun: str) -> str:
    """The noun with "a" or "an"; plural and uncountable nouns stay alone."""
    plural = noun.endswith("s") and not noun.endswith(("ss", "us"))
    if noun in UNCOUNTABLE or plural:
        return noun
    return f"{'an' if noun[0] in 'aeiou' and noun != 'unicorn' else 'a'} {noun}"


def by_slug(slugs: list[str] | None = None) -> tuple[Concept, ...]:
    """The concepts with these slugs in that order; all of them without slugs. Raises ValueError on an unknown slug."""
    table = {concept.slug: concept for concept in CONCEPTS}
    unknown = [slug for slug in slugs or () if slug not in table]
    if unknown:
        raise ValueError(f"unknown concepts {unknown}")
    return CONCEPTS if slugs is None else tuple(table[slug] for slug in slugs)
