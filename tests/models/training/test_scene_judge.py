"""What is read from scenes: right about real ones of made-up drawings, and wrong where it must be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, Concept
from models.training.scene_judge import (
    GROUNDS,
    NOTHING,
    backgrounds,
    counts,
    enlarged,
    foreground,
    ground_colours,
    places,
    tints,
)
from models.training.scenes import COLOURS, COUNTS, LARGE, PLACES, SMALL, TINTS, Scene, Thing, cast, draw

SIZE = 64
SHAPES = ("disc", "bar", "ring", "corner", "cross")
PLACED = [
    Scene("", (Thing(row, offset, SMALL),), ground)
    for row, offset, ground in list(product(range(15), PLACES.values(), GROUNDS))[::4]
]
TINTED = [Scene("", (Thing(row, (0, 0), LARGE, tint),)) for row in range(15) for tint in TINTS]


def shape(kind: int) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    far = np.hypot(x, y)
    return (far < 28, abs(y) < 9, (far < 28) & (far > 15), x + y > 0, (abs(x) < 7) | (abs(y) < 7))[kind]


def drawings() -> Drawings:
    """Shapes with a gradient from dark to light, blue, olive or grey by style; some fill their square."""
    pairs = [(c, s) for c in range(len(SHAPES)) for s in range(3)]
    light = np.linspace(40, 255, SIZE)[None, :, None]
    pixels = np.zeros((len(pairs), SIZE, SIZE, 4), np.uint8)
    for picture, (concept, style) in zip(pixels, pairs, strict=True):
        picture[..., :3] = light * np.array([(0.2, 0.5, 1.0), (0.8, 0.8, 0.3), (0.9, 0.9, 0.9)][style])
        picture[..., 3] = 255
        picture[~shape(concept)] = 0
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    return Drawings(pixels, concept, style, SHAPES, SHAPES, SHAPES, ((),) * len(SHAPES), CAPTION_STYLES)


TABLE = drawings()


def drawn(scenes: list[Scene], blur: float = 0.0) -> np.ndarray:
    """Real scenes, with noise as networks leave it."""
    noise = np.random.default_rng(0).normal(0, blur, (len(scenes), SIZE, SIZE, 3))
    return (np.stack([draw(scene, TABLE) for scene in scenes]) + noise).clip(0, 255).astype(np.uint8)


def place_of(scene: Scene) -> int:
    return list(PLACES.values()).index(scene.things[0].place)


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_background_and_place_of_real_scenes_are_read(noise: float) -> None:
    pictures = drawn(PLACED, noise)
    grounds = [list(GROUNDS).index(scene.background) for scene in PLACED]
    assert np.mean(backgrounds(pictures) == grounds) >= 0.95
    assert np.mean(places(pictures) == [place_of(scene) for scene in PLACED]) >= 0.95


def test_other_scenes_are_not_taken_for_them() -> None:
    pictures, order = drawn(PLACED), np.random.default_rng(0).permutation(len(PLACED))
    shuffled = [PLACED[i] for i in order]
    grounds = [list(GROUNDS).index(scene.background) for scene in shuffled]
    assert np.mean(backgrounds(pictures) == grounds) < 0.15
    assert np.mean(places(pictures) == [place_of(scene) for scene in shuffled]) < 0.25


def test_the_hue_of_real_tinted_things_is_read() -> None:
    asked = [TINTS.index(scene.things[0].tint) for scene in TINTED]
    assert np.mean(tints(drawn(TINTED)) == asked) >= 0.95
    untinted = [Scene("", (Thing(scene.things[0].row, (0, 0), LARGE),)) for scene in TINTED]
    assert np.mean(tints(drawn(untinted)) == asked) < 0.25


def test_every_named_colour_is_its_own() -> None:
    plain = np.stack([np.full((SIZE, SIZE, 3), colour, np.uint8) for colour in GROUNDS.values()])
    assert list(backgrounds(plain)) == list(range(len(GROUNDS)))
    spots = np.full((len(TINTS), SIZE, SIZE, 3), 255, np.uint8)
    spots[:, 20:40, 20:40] = np.array([COLOURS[tint] for tint in TINTS])[:, None, None]
    assert list(tints(spots)) == list(range(len(TINTS)))


def test_an_empty_picture_shows_nothing_anywhere() -> None:
    plain = drawn([Scene("", (), "blue")])
    assert not foreground(plain).any()
    assert places(plain)[0] == tints(plain)[0] == NOTHING and counts(plain)[0] == 0


def test_a_thing_on_the_border_does_not_change_the_background() -> None:
    picture = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    picture[0, 10:54, :32] = 0  # a third of the border
    assert (ground_colours(picture) == 255).all()
    assert foreground(picture).sum() == 44 * 32 and list(places(picture)) == [list(PLACES).index("on the left")]


def test_connected_things_are_counted_and_specks_are_not() -> None:
    scenes = [Scene("", tuple(Thing(0, place, SMALL) for place in offsets)) for offsets in COUNTS.values()]
    assert list(counts(drawn(scenes))) == [2, 3]
    picture = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE]
    picture[0, (np.hypot(x - 32, y - 32) < 30) & ((x + y) // 6 % 2 == 0)] = 0  # diagonal stripes
    picture[0, :3, :3] = 0
    picture[0, 40:50, 0] = 0
    stripes = len(set(((x + y) // 6)[(picture[0] == 0).all(-1) & (np.hypot(x - 32, y - 32) < 30)]))
    assert counts(picture)[0] == stripes > 5


def test_a_winding_thing_is_one() -> None:
    picture = np.full((2, SIZE, SIZE, 3), 255, np.uint8)
    picture[:, 4:60:4, 4:60] = 0
    for i, y in enumerate(range(4, 56, 4)):
        picture[0, y : y + 4, 4 if i % 2 else 59] = 0  # the ends joined into one snake
    assert list(counts(picture)) == [1, 0]  # each line alone is a speck


def test_enlarged_is_the_window_of_the_thing() -> None:
    things = [Thing(i, offset, SMALL) for i, offset in enumerate(PLACES.values())]
    pictures = drawn([Scene("", (thing,)) for thing in things])
    alone = drawn([Scene("", (Thing(thing.row, (0, 0), SMALL),)) for thing in things])
    middle = enlarged(alone, [Thing(0, (0, 0), SMALL)] * 5)
    assert (enlarged(pictures, things) == middle).all()
    assert (enlarged(pictures, things[::-1])[0] != middle[0]).any()
    whole = [Thing(0, (0, 0), 1.0)] * 5
    assert (enlarged(pictures, whole) == pictures).all()


def test_the_drawings_here_are_what_scenes_take() -> None:
    assert len(cast(TABLE, [Concept(name, name) for name in SHAPES]).rows) == len(TABLE) == 15
