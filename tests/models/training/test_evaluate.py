"""The evaluation and the card on made-up pictures, with controls that must fail. No model is run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.artwork import PACKAGES, Drawings
from models.training.card import card, contact_sheet, main, notice, save_png, write_blind
from models.training.concepts import CAPTION_STYLES, Concept
from models.training.evaluate import (
    RealArt,
    Request,
    ask,
    chance_bounds,
    corner_distance,
    derangement,
    judged,
    measure,
    nearest,
    real_art,
    restrict,
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


def test_perfect_pictures_are_right_and_the_controls_at_chance() -> None:
    requests = ask(CONCEPTS, 10)
    result = judged(np.array([r.concept for r in requests]), requests, NAMES)
    assert result["accuracy"] == 1.0 and not result["mistakes"]
    assert set(result["per_style"]) == set(CAPTION_STYLES) and set(result["per_concept"]) == set(NAMES)
    assert result["deranged"] == 0.0
    assert result["controls_at_chance"]


def test_a_judge_that_knows_the_shuffle_fails_the_control() -> None:
    requests = ask(CONCEPTS, 10)
    concept = np.array([r.concept for r in requests])
    peeked = np.random.default_rng(5).permutation(concept)  # what `judged` will compare with
    result = judged(peeked, requests, NAMES, seed=5)
    assert result["shuffled"] == 1.0
    assert not result["controls_at_chance"]


def test_judged_splits_by_style_and_lists_mistakes() -> None:
    requests = ask(CONCEPTS, 1)
    found = np.array([r.concept if r.style else (r.concept + 1) % 12 for r in requests])
    result = judged(found, requests, NAMES)
    assert list(result["per_style"].values()) == [0.0, 1.0, 1.0]
    assert result["per_concept"]["thing c"] == pytest.approx(2 / 3)
    assert result["mistakes"][0] == {"prompt": f"thing a {CAPTION_STYLES[0]}", "seed": 0, "judged": "thing b"}


def test_nearest_is_what_a_plain_search_finds() -> None:
    pictures, references = noise(5, 8, 8, 3), noise(7, 8, 8, 3)
    pictures[3] = references[6]
    found, far = nearest(pictures, references, chunk=3)
    plain = ((pictures[:, None].astype(float) - references[None]) ** 2).mean((2, 3, 4)) ** 0.5
    assert (found == plain.argmin(1)).all()
    assert far == pytest.approx(plain.min(1), abs=0.1)
    assert found[3] == 6 and far[3] == 0.0


def test_style_is_that_of_the_nearest_own_drawing(art: RealArt) -> None:
    requests = ask(CONCEPTS, 1)
    assert style_obeyed(own(art, requests), requests, art) == 1.0
    other = tuple(Request(r.concept, (r.style + 1) % 3, r.prompt, r.seed) for r in requests)
    assert style_obeyed(own(art, other), requests, art) == 0.0


def test_whiteness_looks_at_the_corners_where_the_drawing_is_white() -> None:
    real = np.full((3, 8, 8, 3), 255, np.uint8)
    real[2] = 0
    pictures = real.copy()
    pictures[1, 0, 0] = 155  # one corner of four, 100 levels off
    pictures[0, 3, 3] = 0
    assert list(corner_distance(pictures)) == [0.0, 25.0, 255.0]
    assert whiteness(pictures, real) == {"pictures": 2, "mean_levels": 12.5, "share_within_3_percent": 0.5}


def test_measure_tells_recall_from_other_pictures(art: RealArt) -> None:
    requests, oracle = ask(CONCEPTS, 5), Oracle(Network(12, 8), tuple(c.slug for c in CONCEPTS))
    recalled = own(art, requests)
    figures, found = measure(recalled, requests, CONCEPTS, oracle, art)
    assert figures["judge"]["accuracy"] == figures["nearest"]["is_the_one_asked_for"] == 1.0
    assert (art.pictures[found] == recalled).all()
    wrong, _ = measure(recalled[::-1], requests, CONCEPTS, oracle, art)
    assert wrong["judge"]["accuracy"] == wrong["nearest"]["is_the_one_asked_for"] == 0.0


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


def test_restricted_judge_picks_the_best_of_what_is_left() -> None:
    torch.manual_seed(0)
    judge = Judge(Network(4, 8).eval(), ("a", "b", "c", "d"))
    fewer = restrict(judge, ("d", "b"))
    x = torch.rand(6, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fewer.network(x), judge.network(x)[:, [3, 1]])
    assert fewer.slugs == ("d", "b") and len(judge.network.head.weight) == 4
    assert set(fewer.predict(noise(4, 64, 64, 3))) <= {0, 1}


def test_sheet_is_at_most_2000_pixels_wide() -> None:
    names = [str(i) for i in range(31)]
    cells = noise(31, 3, 64, 64, 3)
    sheet = contact_sheet(names, cells, cells[::-1].copy())
    assert sheet.size == (15 * (128 + 4) + 4, 3 * (3 * 64 + 14 + 4) + 4)
    assert sheet.width <= 2000
    pixels = np.array(sheet)
    assert (pixels[18 : 18 + 64, 4 : 4 + 64] == cells[0, 0]).all()
    assert (pixels[18 : 18 + 64, 68 : 68 + 64] == cells[30, 0]).all()


def test_save_png_uses_fewer_colours_only_when_it_must(tmp_path: Path) -> None:
    picture, path = Image.fromarray(noise(64, 64, 3)), tmp_path / "x.png"
    save_png(picture, path, 20_000)
    with Image.open(path) as read:
        assert (np.array(read) == np.array(picture)).all()
    save_png(picture, path, 4_000)
    assert path.stat().st_size <= 4_000
    with Image.open(path) as read:
        assert read.mode == "P"
    with pytest.raises(ValueError, match="does not fit"):
        save_png(picture, path, 100)


def test_blind_test_keeps_its_answers_apart(tmp_path: Path) -> None:
    asked = np.repeat(np.arange(12), 3)
    write_blind(tmp_path / "b.png", noise(36, 64, 64, 3), asked, NAMES, 20)
    choices = json.loads((tmp_path / "b.choices.json").read_text())
    answers = json.loads((tmp_path / "b.answers.json").read_text())
    assert list(choices) == list(answers) == [str(n) for n in range(1, 21)]
    assert all(len(set(offered)) == 10 and answers[n] in offered for n, offered in choices.items())
    assert len({offered.index(answers[n]) for n, offered in choices.items()}) > 3  # not always in one place
    with Image.open(tmp_path / "b.png") as grid:
        assert grid.size == (10 * 132 + 4, 2 * (128 + 14 + 4) + 4)
    with pytest.raises(ValueError, match="got 9"):
        write_blind(tmp_path / "b.png", noise(9, 8, 8, 3), np.arange(9), NAMES[:9], 5)


@pytest.fixture
def report(art: RealArt) -> dict[str, object]:
    requests, oracle = ask(CONCEPTS, 5), Oracle(Network(12, 8), tuple(c.slug for c in CONCEPTS))
    figures, _ = measure(own(art, requests), requests, CONCEPTS, oracle, art)
    figures["judge"] |= {"trained_on": ["flat"], "real_accuracy": 0.987, "accuracy": 0.8766}
    defaults = {"steps": 20, "guidance": 3.0, "solver": "dpm++2m", "size": [64, 64]}
    return {
        **{"model": "tiny", "defaults": defaults, "parameters": {"unet": 7_654_321}, "autoencoder_psnr_db": 24.68},
        **{"training": {"diffusion": {"steps": 3210, "seed": 0}}, "hours": 1.25, "machine": "an abacus"},
        **{"per_pair": 5, "first_seed": 77, "pictures": 180, "left_out": {"blue heart": 0.61}, **figures},
    }


def test_card_says_what_was_measured(report: dict[str, object]) -> None:
    text = card(report)
    for figure in ("87.7 %", "98.7 %", "24.68 dB", "7.65 M", "1.25 hours", "an abacus", "blue heart 61", "steps 3210"):
        assert figure in text
    assert all(name in text for name in NAMES)
    assert all(package.name in text and package.licence in text for package in PACKAGES)
    assert "not done yet" in text and "trial" not in text
    assert "trial" in card(report | {"only_first": 12})


def test_blind_result_is_added_later(report: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    main(tmp_path, "91 of 100")
    assert "91 of 100" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "evaluation.json").read_text())["blind"] == "91 of 100"


def test_notice_credits_every_package() -> None:
    text = notice()
    assert all(f"{package.name} {package.version}" in text for package in PACKAGES)
    for maker in ("Google", "Microsoft", "Twitter and contributors", "EmojiTwo", "Mozilla", "Mu-An Chiou"):
        assert maker in text
    assert "Permission is hereby granted" in text and "creativecommons.org/licenses/by/4.0" in text
