"""Procedural scenes: the caption says what is drawn, and what is drawn is what the caption says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, UNCOUNTABLE, Concept, with_article
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
    cast,
    corner,
    draw,
    noun_phrase,
    pair,
    pair_phrase,
    plural,
    random_scene,
    random_scenes,
    resize,
    tinted,
)

SIZE = 64
THINGS = (
    Concept("owl", "owl"),
    Concept("pizza", "pizza"),
    Concept("jeans", "jeans"),
    Concept("red-heart", "red heart"),
)
LEVELS = (0, 1, 2, 3)  # of the red channel: a thing in a picture is known by it
GREEN = {style: 40 * i for i, style in enumerate(CAPTION_STYLES)}
SEEDS = st.integers(0, 2**32)


def drawings(left_out: int = 0) -> Drawings:
    """A disc for each thing and style, whose red channel is the thing and whose green channel is the style."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    pairs = [(c, s) for c in range(len(THINGS)) for s in range(3)][left_out:]
    pixels = np.zeros((len(pairs), SIZE, SIZE, 4), np.uint8)
    for picture, (concept, style) in zip(pixels, pairs, strict=True):
        picture[np.hypot(x, y) < 24] = (LEVELS[concept], GREEN[CAPTION_STYLES[style]], 200, 255)
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    slugs = tuple(thing.slug for thing in THINGS)
    return Drawings(pixels, concept, style, slugs, slugs, slugs, ((),) * len(THINGS), CAPTION_STYLES)


TABLE = drawings()
ACTORS = cast(TABLE, THINGS)


def concept_of(thing: Thing) -> Concept:
    return THINGS[TABLE.concept[thing.row]]


def ground_of(scene: Scene) -> tuple[int, int, int]:
    return COLOURS.get(scene.background, (255, 255, 255))


def middle_of(thing: Thing) -> tuple[int, int]:
    """Row and column of the pixel in the middle of a thing."""
    return tuple(SIZE // 2 + step * SIZE // 4 for step in reversed(thing.place))


def test_a_cast_is_the_drawings_of_the_concepts_asked_for() -> None:
    actors = cast(TABLE, THINGS[1:3])
    assert list(actors.rows) == [3, 4, 5, 6, 7, 8]
    assert [c.name for c in actors.concepts] == ["pizza"] * 3 + ["jeans"] * 3
    assert list(actors.styles) == [*CAPTION_STYLES] * 2


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_a_scene_shows_its_caption(seed: int) -> None:
    scene = random_scene(ACTORS, np.random.default_rng(seed))
    picture = draw(scene, TABLE)
    style = scene.caption.split()[-1]
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    shown = np.full((SIZE, SIZE), False)
    for thing in scene.things:
        assert TABLE.styles[TABLE.style[thing.row]] == style
        size = round(SIZE * thing.size)
        x, y = corner(SIZE, size, thing.place)
        shown[y : y + size, x : x + size] = True
        if not thing.tint:
            assert tuple(picture[middle_of(thing)]) == tuple(TABLE.pixels[thing.row, 32, 32, :3])
    assert (picture[~shown] == ground_of(scene)).all()
    said = f"on {with_article(scene.background)} background"
    assert said in scene.caption or scene.background == "white"


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_the_phrase_is_the_things(seed: int) -> None:
    scene = random_scene(ACTORS, np.random.default_rng(seed))
    first = scene.things[0]
    name, words = concept_of(first).name, scene.caption
    if len(scene.things) == 1 and first.tint:
        assert words.startswith(noun_phrase(concept_of(first), first.tint)) and first.place == (0, 0)
        assert first.tint != scene.background and name != "red heart"
    elif len(scene.things) == 1:
        size = "small" if first.size == SMALL else "large"
        place = next(place for place, offset in PLACES.items() if offset == first.place)
        assert words.startswith(f"{noun_phrase(concept_of(first), size)} {place}")
        assert first.size == SMALL or first.place == (0, 0)
    elif words.startswith(tuple(COUNTS)):
        number = words.split()[0]
        assert words.startswith(f"{number} {plural(name)}")
        assert tuple(thing.place for thing in scene.things) == COUNTS[number]
        assert len({thing.row for thing in scene.things}) == 1
    else:
        phrases = [pair_phrase(concept_of(first), relation, concept_of(scene.things[1])) for relation in RELATIONS]
        relation = next(r for r, phrase in zip(RELATIONS, phrases, strict=True) if words.startswith(phrase))
        assert scene.things == pair(first.row, scene.things[1].row, relation)


def test_every_kind_of_scene_comes_up() -> None:
    scenes = random_scenes(ACTORS, 800, 0)
    kinds = [
        "tinted" if s.things[0].tint
        else "counted" if s.caption.startswith(tuple(COUNTS))
        else "placed" if len(s.things) == 1
        else "paired"
        for s in scenes
    ]  # fmt: skip
    share = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert share == pytest.approx({"placed": 0.45, "tinted": 0.15, "counted": 0.16, "paired": 0.24}, abs=0.06)
    assert {s.background for s in scenes} == {"white", *COLOURS}
    assert 0.3 < np.mean([s.background == "white" for s in scenes]) < 0.5
    assert {s.things[0].tint for s in scenes} == {"", *TINTS}
    assert 0.1 < np.mean(["white background" in s.caption for s in scenes if s.background == "white"]) < 0.5


def test_scenes_follow_their_seed() -> None:
    first, again, other = (random_scenes(ACTORS, 20, seed) for seed in (1, 1, 2))
    assert first == again and first != other
    assert random_scenes(ACTORS, 5, 1) == first[:5]


@pytest.mark.parametrize(("place", "half"), [("on the left", np.s_[:, :32]), ("on the right", np.s_[:, 32:]),
                                             ("at the top", np.s_[:32]), ("at the bottom", np.s_[32:])])  # fmt: skip
def test_the_half_that_the_place_names_holds_the_thing(place: str, half: tuple[slice, ...]) -> None:
    picture = draw(Scene("", (Thing(0, PLACES[place], SMALL),), "red"), TABLE)
    thing = (picture != COLOURS["red"]).any(-1)
    outside = thing.copy()
    outside[half] = False
    assert thing.sum() > 300 and not outside.any()


def test_a_large_thing_is_larger_and_both_are_in_the_middle() -> None:
    small, large = (
        (draw(Scene("", (Thing(0, (0, 0), size),)), TABLE) != 255).any(-1) for size in (SMALL, LARGE)
    )  # fmt: skip
    assert large.sum() == pytest.approx(small.sum() * (LARGE / SMALL) ** 2, rel=0.1)
    for mask in (small, large):
        assert np.argwhere(mask).mean(0) == pytest.approx((31.5, 31.5))


def test_three_of_a_kind_do_not_overlap() -> None:
    for offsets in COUNTS.values():
        together = draw(Scene("", tuple(Thing(0, place, SMALL) for place in offsets)), TABLE)
        alone = draw(Scene("", (Thing(0, offsets[0], SMALL),)), TABLE)
        areas = [(picture[..., 0] == LEVELS[0]).sum() for picture in (together, alone)]
        assert areas[0] == len(offsets) * areas[1]


def test_the_first_of_a_pair_stands_where_the_relation_says() -> None:
    for relation, axis, sign in (("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1)):
        picture = draw(Scene("", pair(0, 3, relation)), TABLE)  # an owl and a pizza
        owl, pizza = (np.argwhere(picture[..., 0] == level).mean(0) for level in LEVELS[:2])
        assert sign * (owl - pizza)[axis] == pytest.approx(32, abs=1)
        assert (owl - pizza)[1 - axis] == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("tint", TINTS)
def test_a_tint_keeps_light_and_form_and_takes_the_hue(tint: str) -> None:
    ramp = np.zeros((4, 4, 4), np.uint8)
    ramp[:3, :, 3] = 255
    ramp[:3, :, :3] = np.array([20, 90, 150, 230])[None, :, None]
    ramp[2] //= 2  # half transparent
    shaded = tinted(ramp, COLOURS[tint]).astype(int)
    assert (shaded[..., 3] == ramp[..., 3]).all() and (shaded[3] == 0).all()
    assert (np.diff(shaded[0, :, :3].sum(-1)) > 0).all()  # dark stays darker than light
    assert np.abs(shaded[2] - shaded[0] // 2).max() <= 2
    assert (shaded[..., :3] <= shaded[..., 3:]).all()
    chroma = shaded[0, :, :3] - shaded[0, :, :3].min(-1, keepdims=True)
    wanted = np.array(COLOURS[tint]) - min(COLOURS[tint])
    assert (chroma.argmax(-1) == wanted.argmax()).all() and (chroma.argmin(-1) == wanted.argmin()).all()


def test_resize_keeps_the_mean_of_premultiplied_pixels() -> None:
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:48, 16:48] = (100, 50, 0, 200)
    small = resize(picture, 32)
    assert small.shape == (32, 32, 4)
    np.testing.assert_allclose(small.mean((0, 1)), picture.mean((0, 1)), atol=0.5)
    assert (small[..., :3] <= small[..., 3:]).all()


def test_articles_and_plurals() -> None:
    owl, pizza, jeans, heart = THINGS
    assert noun_phrase(owl, "small") == "a small owl" and noun_phrase(owl, "orange") == "an orange owl"
    assert "pizza" in UNCOUNTABLE and noun_phrase(pizza, "small") == "small pizza"
    assert noun_phrase(jeans, "large") == "large jeans"
    assert pair_phrase(heart, "below", owl) == "a red heart below an owl"
    nouns = {"cat": "cats", "box": "boxes", "fish": "fishes", "cherry": "cherries", "monkey": "monkeys",
             "octopus": "octopuses", "glass": "glasses", "jeans": "jeans", "torch": "torches"}  # fmt: skip
    assert {noun: plural(noun) for noun in nouns} == nouns


def test_a_drawing_left_out_of_the_table_is_in_no_scene() -> None:
    fewer = drawings(left_out=1)  # no owl in the first style
    for scene in random_scenes(cast(fewer, THINGS), 300, 0):
        names = {fewer.slugs[fewer.concept[thing.row]] for thing in scene.things}
        assert "owl" not in names or not scene.caption.endswith(CAPTION_STYLES[0])
    assert any("owl" in s.caption and s.caption.endswith(CAPTION_STYLES[0]) for s in random_scenes(ACTORS, 300, 0))


def test_an_empty_cast_is_refused() -> None:
    with pytest.raises(ValueError):
        random_scene(Cast([], [], []), np.random.default_rng(0))
