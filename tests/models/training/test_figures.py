"""Figures of single things on made-up pictures, with controls that must fail. No model is run."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, Concept
from models.training.figures import (
    Answers,
    RealArt,
    Request,
    ask,
    chance_bounds,
    corner_distance,
    derangement,
    examine,
    is_held_out,
    judged,
    measure,
    measure_held_out,
    nearest,
    real_art,
    style_obeyed,
    whiteness,
)
from models.training.judge import Judge, Network

NAMES = tuple(f"thing {letter}" for letter in "abcdefghijkl")
CONCEPTS = tuple(Concept(name.replace(" ", "-"), name) for name in NAMES)
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


class Oracle(Judge):
    """Reads the concept off a pixel in the middle."""

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        return pictures[:, 4, 4, 0].astype(np.int64)


ORACLE = Oracle(Network(12, 8), tuple(concept.slug for concept in CONCEPTS))


@pytest.fixture
def art() -> RealArt:
    """Noise with white corners; each drawing has its concept written in the middle."""
    pictures = noise(36, 8, 8, 3)
    pictures[:, ::7, ::7] = 255
    row = np.arange(36).reshape(12, 3)
    for place, (concept, _) in zip(row.ravel(), np.argwhere(row >= 0), strict=True):
        pictures[place, 4, 4] = concept
    return RealArt(pictures, row)


def own(art: RealArt, requests: tuple[Request, ...]) -> np.ndarray:
    """What a perfect model would give."""
    return art.pictures[[art.row[r.concept, r.style] for r in requests]]


def found(requests: tuple[Request, ...], judged: np.ndarray) -> Answers:
    """Answers of which only what the judge says matters."""
    count = len(requests)
    return Answers(requests, noise(count, 8, 8, 3), judged, np.zeros(count, np.int64), np.zeros(count, np.float32))


def test_ask_names_style_last_and_counts_seeds() -> None:
    requests = ask(CONCEPTS[:2], 2, 100)
    assert [r.prompt for r in requests[::2]] == [f"{n} {s}" for n in NAMES[:2] for s in CAPTION_STYLES]
    assert [r.seed for r in requests] == list(range(100, 112))
    assert requests[-1] == Request(1, 2, f"thing b {CAPTION_STYLES[2]}", 111)


@pytest.mark.parametrize("count", [2, 3, 100])
def test_derangement_moves_everything(count: int) -> None:
    order = derangement(count, np.random.default_rng(count))
    assert sorted(order) == list(range(count))
    assert not (order == np.arange(count)).any()


def test_derangement_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 things"):
        derangement(1, RNG)


def test_chance_bounds_are_three_standard_errors() -> None:
    assert chance_bounds(10, 900) == pytest.approx((0.07, 0.13))
    assert chance_bounds(10, 9)[0] == 0.0


def test_guesses_stay_within_the_bounds() -> None:
    low, high = chance_bounds(12, 360)
    shares = [(RNG.integers(0, 12, 360) == RNG.integers(0, 12, 360)).mean() for _ in range(500)]
    assert np.mean([low <= share <= high for share in shares]) > 0.98


def test_nearest_is_what_a_plain_search_finds() -> None:
    pictures, references = noise(5, 8, 8, 3), noise(7, 8, 8, 3)
    pictures[3] = references[6]
    found, far = nearest(pictures, references, chunk=3)
    plain = ((pictures[:, None].astype(float) - references[None]) ** 2).mean((2, 3, 4)) ** 0.5
    assert (found == plain.argmin(1)).all()
    assert far == pytest.approx(plain.min(1), abs=0.1)
    assert found[3] == 6 and far[3] == 0.0


def test_whiteness_looks_at_the_corners_where_the_drawing_is_white() -> None:
    real = np.full((3, 8, 8, 3), 255, np.uint8)
    real[2] = 0
    pictures = real.copy()
    pictures[1, 0, 0] = 155  # one corner of four, 100 levels off
    pictures[0, 3, 3] = 0
    assert list(corner_distance(pictures)) == [0.0, 25.0, 255.0]
    assert whiteness(pictures, real) == {"pictures": 2, "mean_levels": 12.5, "share_within_3_percent": 0.5}


def test_real_art_finds_the_rows_and_names_the_missing() -> None:
    styles = ("flat", *CAPTION_STYLES)
    pairs = [(c, s) for s in range(4) for c in range(2)]
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    pixels = noise(8, 4, 4, 4)
    drawings = Drawings(pixels, concept, style, ("a", "b"), ("a", "b"), ("", ""), ((), ()), styles)
    found = real_art(drawings, ("b", "a"))
    assert len(found.pictures) == 6
    assert found.row.tolist() == [[1, 3, 5], [0, 2, 4]]
    fewer = Drawings(pixels[:7], concept[:7], style[:7], ("a", "b"), ("a", "b"), ("", ""), ((), ()), styles)
    with pytest.raises(ValueError, match=r"\['b'\] are not drawn"):
        real_art(fewer, ("b", "a"))


def test_perfect_pictures_are_right_and_the_controls_at_chance() -> None:
    requests = ask(CONCEPTS, 10)
    result = judged(found(requests, np.array([r.concept for r in requests])), NAMES)
    assert result["accuracy"] == 1.0 and not result["mistakes"]
    assert set(result["per_style"]) == set(CAPTION_STYLES) and set(result["per_concept"]) == set(NAMES)
    assert result["deranged"] == 0.0
    assert result["controls_at_chance"]


def test_a_judge_that_knows_the_shuffle_fails_the_control() -> None:
    requests = ask(CONCEPTS, 10)
    concept = np.array([r.concept for r in requests])
    peeked = np.random.default_rng(5).permutation(concept)  # what `judged` will compare with
    result = judged(found(requests, peeked), NAMES, seed=5)
    assert result["shuffled"] == 1.0
    assert not result["controls_at_chance"]


def test_judged_splits_by_style_and_lists_mistakes() -> None:
    requests = ask(CONCEPTS, 1)
    answers = found(requests, np.array([r.concept if r.style else (r.concept + 1) % 12 for r in requests]))
    result = judged(answers, NAMES)
    assert list(result["per_style"].values()) == [0.0, 1.0, 1.0]
    assert result["per_concept"]["thing c"] == pytest.approx(2 / 3)
    assert result["mistakes"][0] == {"prompt": f"thing a {CAPTION_STYLES[0]}", "seed": 0, "judged": "thing b"}


def test_style_is_that_of_the_nearest_own_drawing(art: RealArt) -> None:
    requests = ask(CONCEPTS, 1)
    assert style_obeyed(examine(requests, own(art, requests), ORACLE, art), art) == 1.0
    other = tuple(Request(r.concept, (r.style + 1) % 3, r.prompt, r.seed) for r in requests)
    assert style_obeyed(examine(requests, own(art, other), ORACLE, art), art) == 0.0


def test_measure_tells_recall_from_other_pictures(art: RealArt) -> None:
    requests = ask(CONCEPTS, 5)
    recalled = own(art, requests)
    answers = examine(requests, recalled, ORACLE, art)
    figures = measure(answers, NAMES, art)
    assert figures["judge"]["accuracy"] == figures["nearest"]["is_the_one_asked_for"] == 1.0
    assert figures["pictures"] == 180 and (art.pictures[answers.nearest] == recalled).all()
    wrong = measure(examine(requests, recalled[::-1], ORACLE, art), NAMES, art)
    assert wrong["judge"]["accuracy"] == wrong["nearest"]["is_the_one_asked_for"] == 0.0


def test_answers_keep_their_rows_together(art: RealArt) -> None:
    requests = ask(CONCEPTS, 2)
    answers = examine(requests, own(art, requests), ORACLE, art)
    keep = answers.style == 1
    some = answers.where(keep)
    assert len(some) == 24 and some.requests == tuple(r for r in requests if r.style == 1)
    assert (some.nearest == art.row[some.concept, 1]).all() and (some.judged == some.concept).all()
    assert (some.pictures == answers.pictures[keep]).all() and (some.distance == answers.distance[keep]).all()


def test_held_out_requests_are_those_of_the_pairs() -> None:
    requests = ask(CONCEPTS, 2)
    hidden = is_held_out(requests, CONCEPTS, {("thing-b", CAPTION_STYLES[1]), ("thing-x", CAPTION_STYLES[0])})
    assert [r.prompt for r, out in zip(requests, hidden, strict=True) if out] == [f"thing b {CAPTION_STYLES[1]}"] * 2


def held_out_figures(art: RealArt, shown_style: int) -> dict[str, object]:
    """Things a to h were held out in style 1, and come in ``shown_style``; the rest comes as asked for."""
    requests = ask(CONCEPTS, 2)
    hidden = is_held_out(requests, CONCEPTS, {(concept.slug, CAPTION_STYLES[1]) for concept in CONCEPTS[:8]})
    shown = [Request(r.concept, shown_style, "", 0) if out else r for r, out in zip(requests, hidden, strict=True)]
    answers = examine(requests, own(art, tuple(shown)), ORACLE, art)
    return measure_held_out(answers.where(hidden), answers.where(~hidden), NAMES, art)


def test_held_out_pairs_have_figures_of_their_own(art: RealArt) -> None:
    drawn, copied = held_out_figures(art, 1), held_out_figures(art, 0)
    assert drawn["pairs"] == [f"{name} {CAPTION_STYLES[1]}" for name in NAMES[:8]] and drawn["pictures"] == 16
    keys = ("accuracy", "style_obeyed", "nearest_is_the_unseen_drawing", "nearest_is_a_seen_drawing_of_it")
    assert [drawn[key] for key in keys] == [1.0, 1.0, 1.0, 0.0]
    assert [copied[key] for key in keys] == [1.0, 0.0, 0.0, 1.0]
    for figures in (drawn, copied):
        assert figures["accuracy_in_seen_styles"] == figures["style_obeyed_in_seen_styles"] == 1.0
        assert figures["shuffled"] <= figures["at_most"] and not figures["mistakes"]


def test_pictures_of_other_things_are_mistakes_on_held_out_pairs(art: RealArt) -> None:
    requests = ask(CONCEPTS, 2)
    hidden = is_held_out(requests, CONCEPTS, {(concept.slug, CAPTION_STYLES[1]) for concept in CONCEPTS})
    answers = examine(requests, own(art, requests)[::-1], ORACLE, art)
    figures = measure_held_out(answers.where(hidden), answers.where(~hidden), NAMES, art)
    assert figures["accuracy"] == figures["nearest_is_a_seen_drawing_of_it"] == 0.0
    assert len(figures["mistakes"]) == 24
