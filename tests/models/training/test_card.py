"""The model card says what was measured, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.training.artwork import PACKAGES
from models.training.card import CHECKS, SCENE_KINDS, card, main, table

STYLES = ("3d", "noto", "twemoji")


def check(share: float) -> dict[str, Any]:
    return {"share": share, "real": 0.9931, "shuffled": 0.0512, "at_most": 0.1203, "control_at_chance": True}


@pytest.fixture
def report() -> dict[str, Any]:
    shares = iter(range(101, 200))
    kinds = {"placed": ("background", "place", "background and place", "thing"), "tinted": ("tint", "thing"),
             "counted": ("number",), "paired": ("first", "second", "both", "changed places")}  # fmt: skip
    return {
        "model": "tiny",
        "defaults": {"steps": 20, "guidance": 3.0, "solver": "dpm++2m", "size": [64, 64]},
        "parameters": {"unet": 7_654_321},
        "autoencoder_psnr_db": 24.68,
        "small_decoder_psnr_db": 23.1,
        "training": {
            "first stage": {"steps": 3210, "seed": 0},
            "second stage": {"steps": 6543, "seed": 1, "scenes": 12_000, "held_out_pairs": 48},
        },
        "trained_on": "an abacus in 1.25 hours",
        **{"per_pair": 5, "first_seed": 77, "pictures": 180, "left_out": {"blue heart": 0.61}},
        "judge": {
            **{"trained_on": ["flat"], "real_accuracy": 0.987, "accuracy": 0.8766, "classes": 2, "shuffled": 0.0123},
            **{"deranged": 0.001, "chance": 0.5, "chance_bounds": [0.4, 0.6], "per_style": dict.fromkeys(STYLES, 0.5)},
            "per_concept": {"thing a": 1.0, "thing b": 0.25},
        },
        "style_obeyed": 0.9444,
        "white": {"pictures": 3, "mean_levels": 4.29, "share_within_3_percent": 0.904},
        "nearest": {"among": 4885, "is_the_one_asked_for": 0.9333, "median_rms_levels": 13.2},
        "held_out": {
            **{"pairs": ["thing a noto", "thing b 3d"], "pictures": 26, "accuracy": 0.7117, "style_obeyed": 0.6227},
            **{"accuracy_in_seen_styles": 0.9117, "style_obeyed_in_seen_styles": 0.9227, "shuffled": 0.0337},
            **{"nearest_is_the_unseen_drawing": 0.2117, "nearest_is_a_seen_drawing_of_it": 0.5337, "at_most": 0.2447},
        },
        "scenes": {
            kind: {
                "pictures": 44,
                "example": f"{kind} things 3d",
                "checks": {name: check(next(shares) / 1000) for name in names},
            }
            for kind, names in kinds.items()
        },
    }


def test_card_says_what_was_measured(report: dict[str, Any]) -> None:
    text = card(report)
    for figure in ("87.7 %", "98.7 %", "94.4 %", "90.4 %", "93.3 %", "24.68 dB", "7.65 M", "an abacus in 1.25 hours"):
        assert figure in text
    for words in ("blue heart 61", "thing a 100, thing b 25", "steps 3210", "steps 6543", "scenes 12000", "seed 1"):
        assert words in text
    assert all(package.name in text and package.licence in text for package in PACKAGES)
    assert "not done yet" in text and "trial" not in text
    assert "trial" in card(report | {"only_first": 12})


def test_card_tells_unseen_pairs_from_seen_ones(report: dict[str, Any]) -> None:
    text = card(report)
    assert "| named rightly by the judge | 71.2 % | 91.2 % |" in text
    assert "| style obeyed | 62.3 % | 92.3 % |" in text
    assert all(figure in text for figure in ("21.2 %", "53.4 %", "3.4 % (at most 24.5 %)", "thing a noto, thing b 3d"))
    assert "71.2 %" not in card(report | {"held_out": None})


def test_card_has_every_check_of_every_kind_of_scene(report: dict[str, Any]) -> None:
    text, shares = card(report), iter(range(101, 200))
    for kind, figures in report["scenes"].items():
        assert f'{SCENE_KINDS[kind]}: 44 pictures, such as "{kind} things 3d".' in text
        for name in figures["checks"]:
            assert f"| {CHECKS[name]} | {next(shares) / 10:.1f} % | 99.3 % | 5.1 % | 12.0 % |" in text


def test_tables_are_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_blind_result_is_added_later(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    main(tmp_path, "91 of 100")
    assert "91 of 100" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "evaluation.json").read_text())["blind"] == "91 of 100"
