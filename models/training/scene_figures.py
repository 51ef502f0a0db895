"""How well a model obeys words about place, colour, tint and number: prompts that training never saw, and figures.

Every figure stands beside two others: what the same measure says of real scenes, drawn by `scenes.draw` to the same
prompts, which is the most it can say; and what it says when the prompts are shuffled, which must be chance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, Concept, captions
from models.training.diffusion import without
from models.training.figures import chance_bounds
from models.training.judge import Judge
from models.training.scene_judge import GROUNDS, NOTHING, backgrounds, counts, enlarged, places, tints
from models.training.scenes import (
    COLOURS,
    COUNTS,
    LARGE,
    PLACES,
    RELATIONS,
    SMALL,
    TINTS,
    Cast,
    Scene,
    Thing,
    caption,
    cast,
    draw,
    noun_phrase,
    pair,
    pair_phrase,
    plural,
    random_scenes,
)

Pictures = NDArray[np.uint8]
TRIES = 10_000  # drawings to look at for one scene
REPEATS = {"placed": 4, "tinted": 15, "counted": 50, "paired": 25}
"""Scenes for each combination of the words that a kind is about."""


@dataclass(frozen=True)
class Stage:
    """Where scenes are drawn and judged: a table of drawings, who may appear, and a judge of just their concepts."""

    drawings: Drawings
    actors: Cast
    judge: Judge

    def concept(self, thing: Thing) -> int:
        """The judge's class of a thing."""
        return self.judge.slugs.index(self.drawings.slugs[self.drawings.concept[thing.row]])

    def pictures(self, scenes: Sequence[Scene]) -> Pictures:
        """Real scenes: uint8 [N, S, S, 3]."""
        return np.stack([draw(scene, self.drawings) for scene in scenes])


@dataclass(frozen=True)
class Check:
    """One thing to ask of a picture: the number of answers, the right one, and what is found (NOTHING if no answer)."""

    classes: int
    asked: Callable[[Scene], int]
    found: Callable[[Pictures, Sequence[Scene]], NDArray[np.int64]]


def set_stage(
    drawings: Drawings, concepts: Sequence[Concept], judge: Judge, held_out: Collection[tuple[str, str]]
) -> Stage:
    """A stage for these concepts, which are the judge's, without the pairs of thing and style that are held out."""
    chosen = without(drawings.select([c.slug for c in concepts], CAPTION_STYLES), held_out)
    return Stage(chosen, cast(chosen, concepts), judge)


def trained_captions(
    drawings: Drawings, concepts: Sequence[Concept], held_out: Collection[tuple[str, str]], scenes: int, seed: int
) -> frozenset[str]:
    """Every caption that training may have used: those of the scenes it drew, and all of single drawings."""
    chosen = without(drawings.select([c.slug for c in concepts], CAPTION_STYLES), held_out)
    drawn = random_scenes(cast(chosen, concepts), scenes, seed)
    singles = (text for concept in concepts for style in CAPTION_STYLES for text in captions(concept, style))
    return frozenset([*(scene.caption for scene in drawn), *singles])


def new_scenes(stage: Stage, trained: Collection[str], repeats: dict[str, int], seed: int) -> dict[str, list[Scene]]:
    """Scenes of each kind, none with a caption in ``trained``, the same ones for the same seed.

    Raises:
        ValueError: no drawing of the cast gives a new scene.
    """
    actors, rng = stage.actors, np.random.default_rng(seed)
    turns = _turns(actors, rng)

    def first_new(make: Callable[[int], Scene | None]) -> Scene:
        for actor in islice(turns, TRIES):
            scene = make(actor)
            if scene is not None and scene.caption not in trained:
                return scene
        raise ValueError(f"no new scene with any of {len(actors.rows)} drawings")

    makers: dict[str, list[Callable[[int], Scene | None]]] = {
        "placed": [_placed(actors, place, ground) for place, ground in product(PLACES, GROUNDS)],
        "tinted": [_tinted(actors, tint) for tint in TINTS],
        "counted": [_counted(stage, number) for number in COUNTS],
        "paired": [_paired(actors, relation, rng) for relation in RELATIONS],
    }
    return {kind: [first_new(make) for make in makers[kind] for _ in range(times)] for kind, times in repeats.items()}


def measure_scenes(
    kind: str, scenes: Sequence[Scene], pictures: Pictures, stage: Stage, seed: int = 0
) -> dict[str, Any]:
    """All checks of one kind of scenes, on a model's pictures [N, S, S, 3] and on real ones."""
    real, rng = stage.pictures(scenes), np.random.default_rng(seed)
    figures: dict[str, Any] = {}
    for name, check in checks(kind, stage).items():
        asked = np.array([check.asked(scene) for scene in scenes], np.int64)
        found = check.found(pictures, scenes)
        shuffled = float((found == rng.permutation(asked)).mean())
        most = chance_bounds(len(np.unique(asked)), len(asked))[1]
        figures[name] = {
            "share": float((found == asked).mean()),
            "real": float((check.found(real, scenes) == asked).mean()),
            "shuffled": shuffled,
            "at_most": most,
            "control_at_chance": shuffled <= most,
        }
    return {"pictures": len(scenes), "example": scenes[0].caption, "checks": figures}


def checks(kind: str, stage: Stage) -> dict[str, Check]:
    """What is asked of the pictures of a kind of scenes."""
    if kind == "placed":
        ground, place = _background(), _place()
        both = _both(ground, place)
        return {"background": ground, "place": place, "background and place": both, "thing": _thing(stage, 0, 0)}
    if kind == "tinted":
        return {"tint": _tint(), "thing": _thing(stage, 0, 0)}
    if kind == "counted":
        return {"number": _number()}
    there, swapped = (_both(_thing(stage, 0, i), _thing(stage, 1, 1 - i)) for i in (0, 1))
    return {"first": _thing(stage, 0, 0), "second": _thing(stage, 1, 1), "both": there, "changed places": swapped}


def _turns(actors: Cast, rng: np.random.Generator) -> Iterator[int]:
    """Places in the cast without end: round after round, every concept once, in any order and any of its styles."""
    drawn: dict[Concept, list[int]] = {}
    for i, concept in enumerate(actors.concepts):
        drawn.setdefault(concept, []).append(i)
    own = list(drawn.values())
    while True:
        for k in rng.permutation(len(own)):
            yield own[k][rng.integers(len(own[k]))]


def _placed(actors: Cast, place: str, ground: str) -> Callable[[int], Scene]:
    """A small thing at a place of PLACES on a colour of GROUNDS."""

    def make(i: int) -> Scene:
        text = caption(f"{noun_phrase(actors.concepts[i], 'small')} {place}", ground, actors.styles[i])
        return Scene(text, (Thing(actors.rows[i], PLACES[place], SMALL),), ground)

    return make


def _tinted(actors: Cast, tint: str) -> Callable[[int], Scene | None]:
    """A large thing in shades of a colour, unless it has a colour in its name."""

    def make(i: int) -> Scene | None:
        concept = actors.concepts[i]
        if COLOURS.keys() & set(concept.name.split()):
            return None
        text = caption(noun_phrase(concept, tint), "", actors.styles[i])
        return Scene(text, (Thing(actors.rows[i], (0, 0), LARGE, tint),))

    return make


def _counted(stage: Stage, number: str) -> Callable[[int], Scene | None]:
    """Several of a kind, unless even the real scene is miscounted, as it is for things that touch or fall apart."""
    actors, offsets = stage.actors, COUNTS[number]

    def make(i: int) -> Scene | None:
        text = caption(f"{number} {plural(actors.concepts[i].name)}", "", actors.styles[i])
        scene = Scene(text, tuple(Thing(actors.rows[i], place, SMALL) for place in offsets))
        return scene if counts(stage.pictures([scene]))[0] == len(offsets) else None

    return make


def _paired(actors: Cast, relation: str, rng: np.random.Generator) -> Callable[[int], Scene | None]:
    """Two different things of one style."""

    def make(i: int) -> Scene | None:
        j = int(rng.integers(len(actors.rows)))
        first, second = actors.concepts[i], actors.concepts[j]
        if first == second or actors.styles[i] != actors.styles[j]:
            return None
        text = caption(pair_phrase(first, relation, second), "", actors.styles[i])
        return Scene(text, pair(actors.rows[i], actors.rows[j], relation))

    return make


def _background() -> Check:
    names = list(GROUNDS)
    return Check(len(names), lambda scene: names.index(scene.background), lambda pictures, _: backgrounds(pictures))


def _place() -> Check:
    offsets = list(PLACES.values())
    return Check(len(offsets), lambda scene: offsets.index(scene.things[0].place), lambda pictures, _: places(pictures))


def _tint() -> Check:
    return Check(len(TINTS), lambda scene: TINTS.index(scene.things[0].tint), lambda pictures, _: tints(pictures))


def _number() -> Check:
    numbers = [len(offsets) for offsets in COUNTS.values()]

    def found(pictures: Pictures, _scenes: Sequence[Scene]) -> NDArray[np.int64]:
        return np.array([numbers.index(n) if n in numbers else NOTHING for n in counts(pictures)], np.int64)

    return Check(len(numbers), lambda scene: numbers.index(len(scene.things)), found)


def _thing(stage: Stage, asked: int, window: int) -> Check:
    """Whether the judge names one thing of the scene in the window where another, or the same, should stand."""

    def found(pictures: Pictures, scenes: Sequence[Scene]) -> NDArray[np.int64]:
        return stage.judge.predict(enlarged(pictures, [scene.things[window] for scene in scenes]))

    return Check(len(stage.judge.slugs), lambda scene: stage.concept(scene.things[asked]), found)


def _both(first: Check, second: Check) -> Check:
    """Two checks at once."""

    def found(pictures: Pictures, scenes: Sequence[Scene]) -> NDArray[np.int64]:
        a, b = first.found(pictures, scenes), second.found(pictures, scenes)
        return np.where((a == NOTHING) | (b == NOTHING), NOTHING, a * second.classes + b)

    classes = first.classes * second.classes
    return Check(classes, lambda scene: first.asked(scene) * second.classes + second.asked(scene), found)
