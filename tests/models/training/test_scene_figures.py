"""Scenes to ask for and the figures of what comes: perfect on real scenes, chance on others. No model is run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, Concept, captions
from models.training.judge import Judge, Network
from models.training.scene_figures import (
    Stage,
    checks,
    measure_scenes,
    new_scenes,
    set_stage,
    trained_captions,
)
from models.training.scene_judge import GROUNDS
from models.training.scenes import COUNTS, PLACES, RELATIONS, TINTS, Scene, cast, random_scenes

SIZE = 64
LETTERS = "abcdefghijklmnop"
CONCEPTS = (*(Concept(f"thing-{letter}", f"thing {letter}") for letter in LETTERS), Concept("red-one", "red one"))
HELD_OUT = {("thing-b", CAPTION_STYLES[1])}
REPEATS = {"placed": 2, "tinted": 3, "counted": 6, "paired": 6}


def drawings() -> Drawings:
    """Rectangles: no two concepts have the same form, and each style has its own shade."""
    pairs = [(c, s) for c in range(len(CONCEPTS)) for s in range(3)]
    pixels = np.zeros((len(pairs), SIZE, SIZE, 4), np.uint8)
    for picture, (concept, style) in zip(pixels, pairs, strict=True):
        half_height, half_width = 10 + 6 * (concept % 4), 10 + 5 * (concept // 4)
        picture[32 - half_height : 32 + half_height, 32 - half_width : 32 + half_width] = (
            90,
            40 + 30 * style,
            110,
            255,
        )
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    slugs, names = tuple(c.slug for c in CONCEPTS), tuple(c.name for c in CONCEPTS)
    return Drawings(pixels, concept, style, slugs, names, names, ((),) * len(CONCEPTS), CAPTION_STYLES)


class Oracle(Judge):
    """Knows the concepts by the height and width of their rectangles."""

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        found = []
        for picture in pictures.astype(int):
            rows, columns = np.nonzero(np.abs(picture - picture[0, 0]).max(-1) > 25)
            height, width = (np.ptp(axis) + 1 if len(axis) else 0 for axis in (rows, columns))
            form = round((height / 2 - 10) / 6), round((width / 2 - 10) / 5)
            found.append(min(max(form[0] + 4 * form[1], 0), len(self.slugs) - 1))
        return np.array(found, np.int64)


ORACLE = Oracle(Network(len(CONCEPTS), 8), tuple(concept.slug for concept in CONCEPTS))
STAGE = set_stage(drawings(), CONCEPTS, ORACLE, HELD_OUT)
SCENES = new_scenes(STAGE, (), REPEATS, 0)


def test_a_stage_leaves_out_what_is_held_out() -> None:
    pairs = {(concept.slug, style) for concept, style in zip(STAGE.actors.concepts, STAGE.actors.styles, strict=True)}
    assert len(pairs) == len(STAGE.drawings) == 3 * len(CONCEPTS) - 1 and not pairs & HELD_OUT
    everywhere = [thing for kind in SCENES.values() for scene in kind for thing in scene.things]
    shown = {(CONCEPTS[STAGE.concept(t)].slug, STAGE.drawings.styles[STAGE.drawings.style[t.row]]) for t in everywhere}
    assert len(shown) > 30 and not shown & HELD_OUT


def test_every_combination_comes_as_often_as_asked() -> None:
    assert {kind: len(scenes) for kind, scenes in SCENES.items()} == {
        "placed": 2 * len(PLACES) * len(GROUNDS), "tinted": 3 * len(TINTS), "counted": 6 * len(COUNTS),
        "paired": 6 * len(RELATIONS),
    }  # fmt: skip
    placed = Counter((scene.background, scene.things[0].place) for scene in SCENES["placed"])
    assert set(placed.values()) == {2} and len(placed) == 55
    assert set(Counter(scene.things[0].tint for scene in SCENES["tinted"]).values()) == {3}
    assert Counter(len(scene.things) for scene in SCENES["counted"]) == {2: 6, 3: 6}
    assert set(Counter(scene.things[0].place for scene in SCENES["paired"]).values()) == {6}


def test_concepts_take_turns() -> None:
    times = Counter(STAGE.concept(scene.things[0]) for scene in SCENES["placed"])
    assert set(times) == set(range(len(CONCEPTS))) and max(times.values()) - min(times.values()) <= 1


def test_prompts_say_what_is_asked() -> None:
    assert all(scene.caption.startswith("a small ") for scene in SCENES["placed"])
    assert all(
        f"on a{'n' * (s.background == 'orange')} {s.background} background" in s.caption for s in SCENES["placed"]
    )
    assert not [scene for scene in SCENES["tinted"] if "red one" in scene.caption]  # has a colour already
    for kind in SCENES.values():
        for scene in kind:
            name = CONCEPTS[STAGE.concept(scene.things[0])].name
            assert name in scene.caption and scene.caption.split()[-1] in CAPTION_STYLES
    for scene in SCENES["paired"]:
        first, second = (CONCEPTS[STAGE.concept(thing)].name for thing in scene.things)
        assert first != second and scene.caption.startswith(f"a {first} ") and f" a {second} " in scene.caption


def test_scenes_follow_their_seed_and_avoid_what_was_trained() -> None:
    assert new_scenes(STAGE, (), REPEATS, 0) == SCENES
    seen = {scene.caption for kind in SCENES.values() for scene in kind}
    others = {scene.caption for kind in new_scenes(STAGE, seen, REPEATS, 0).values() for scene in kind}
    assert len(others) > 60 and not others & seen
    with pytest.raises(ValueError, match="no new scene with any of 50"):
        new_scenes(STAGE, AllCaptions(), REPEATS, 0)


class AllCaptions(frozenset):
    """Training that has seen everything."""

    def __contains__(self, _: object) -> bool:
        return True


def test_trained_captions_are_those_of_the_scenes_and_the_single_drawings() -> None:
    trained = trained_captions(drawings(), CONCEPTS, HELD_OUT, 40, 3)
    drawn = random_scenes(cast(STAGE.drawings, CONCEPTS), 40, 3)
    assert {scene.caption for scene in drawn} <= trained
    assert set(captions(CONCEPTS[4], "noto")) <= trained
    other = random_scenes(cast(STAGE.drawings, CONCEPTS), 40, 4)
    assert not {scene.caption for scene in other} <= trained


@pytest.mark.parametrize("kind", SCENES)
def test_real_scenes_are_right_and_their_shuffles_are_not(kind: str) -> None:
    scenes = SCENES[kind]
    figures = measure_scenes(kind, scenes, STAGE.pictures(scenes), STAGE)
    assert figures["pictures"] == len(scenes) and figures["example"] == scenes[0].caption
    for name, check in figures["checks"].items():
        assert check["share"] == check["real"]
        least = 0.6 if name in {"thing", "first", "second", "both"} else 0.95  # the oracle's eyes are not sharp
        assert check["share"] == 0.0 if name == "changed places" else check["share"] >= least, name
        assert check["control_at_chance"] and check["shuffled"] <= check["at_most"] < 1.0


def test_pictures_of_other_scenes_are_wrong() -> None:
    scenes = SCENES["placed"]
    turned = [scenes[(i + 32) % len(scenes)] for i in range(len(scenes))]  # another place and another colour
    figures = measure_scenes("placed", scenes, STAGE.pictures(turned), STAGE)["checks"]
    assert figures["background"]["share"] == figures["place"]["share"] == 0.0
    assert figures["background"]["real"] >= 0.95


def test_both_needs_both() -> None:
    scenes = SCENES["placed"]
    recoloured = [replace(scene, background="white") for scene in scenes]
    figures = measure_scenes("placed", scenes, STAGE.pictures(recoloured), STAGE)["checks"]
    assert figures["place"]["share"] >= 0.95
    assert figures["background"]["share"] == pytest.approx(1 / 11)
    assert figures["background and place"]["share"] == pytest.approx(1 / 11, abs=0.02)


def test_pairs_in_each_others_place_are_told_from_pairs_in_their_own() -> None:
    scenes = SCENES["paired"]
    turned = [Scene(s.caption, tuple(replace(t, row=u.row) for t, u in zip(s.things, s.things[::-1], strict=True)))
              for s in scenes]  # fmt: skip
    figures = measure_scenes("paired", scenes, STAGE.pictures(turned), STAGE)["checks"]
    assert figures["both"]["share"] == 0.0 and figures["changed places"]["share"] >= 0.4


def test_blank_pictures_have_no_place_tint_or_number() -> None:
    for kind, names in (("placed", ("place", "background and place")), ("tinted", ("tint",)), ("counted", ("number",))):
        blank = np.full((len(SCENES[kind]), SIZE, SIZE, 3), 255, np.uint8)
        figures = measure_scenes(kind, SCENES[kind], blank, STAGE)["checks"]
        assert [figures[name]["share"] for name in names] == [0.0] * len(names)


def test_the_bound_is_that_of_the_prompts_that_were_shuffled() -> None:
    scenes = SCENES["paired"][:20]  # with all prompts different, a shuffle leaves one of them where it was
    check = measure_scenes("paired", scenes, STAGE.pictures(scenes), STAGE)["checks"]["both"]
    assert check["at_most"] == pytest.approx(1 / 20 + 3 * (0.05 * 0.95 / 20) ** 0.5)


def test_a_leak_of_the_shuffle_is_found() -> None:
    """What is found is what the shuffled prompts ask for: a measure that peeks."""
    scenes = SCENES["tinted"]
    order = np.random.default_rng(7).permutation(len(scenes))  # what `measure_scenes` will shuffle first
    peeked = STAGE.pictures([scenes[i] for i in order])
    check = measure_scenes("tinted", scenes, peeked, STAGE, seed=7)["checks"]["tint"]
    assert check["shuffled"] >= 0.95 and not check["control_at_chance"]


def test_checks_have_as_many_answers_as_there_are_words() -> None:
    classes = {kind: {name: check.classes for name, check in checks(kind, STAGE).items()} for kind in SCENES}
    assert classes["placed"] == {"background": 11, "place": 5, "background and place": 55, "thing": 17}
    assert classes["tinted"] == {"tint": 7, "thing": 17} and classes["counted"] == {"number": 2}
    assert classes["paired"] == {"first": 17, "second": 17, "both": 289, "changed places": 289}


def test_things_that_are_miscounted_are_not_asked_for() -> None:
    table = drawings()
    table.pixels[:48, :, 28:36] = 0  # all but the last concept fall apart
    halves = Stage(table, cast(table, CONCEPTS), ORACLE)
    asked = new_scenes(halves, (), {"counted": 2}, 0)["counted"]
    assert {halves.concept(scene.things[0]) for scene in asked} == {16}
