"""The video model's card tells what was measured, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

from models.training.video_card import card

FIGURES: dict[str, Any] = {
    "first_frame_l1": 0.0123,
    "first_frame_l1_of_another_input": 0.31,
    "motion": {"spearman": 0.87, "spearman_of_another_clips_bucket": 0.02},
    "still": {"frame_change": 0.0041, "frame_change_when_moving": 0.055},
    "strong": {"bucket": 127, "pixels_a_frame": 1.75, "share_over_a_pixel": 0.93},
    "order": {"accuracy": 0.91, "of_frozen_clips": 0.5, "chance_bounds": [0.4, 0.6]},
    "flicker": {"generated": 0.0033, "still_clips_decoded": 0.0029, "still_share_of_pixels": 0.4},
}
REPORT: dict[str, Any] = {
    "model": "emoji-svd",
    "defaults": {"steps": 20, "guidance": 2.0, "solver": "euler", "size": [64, 64]},
    "frames": 8,
    "inputs": 100,
    "first_seed": 0,
    "parameters": {"unet": 5_165_332},
    "trained_on": "2 CPU cores, 3 h",
    "training": {"data": {"clips": 15360}},
    "order_of_real_clips": 0.97,
    "known": FIGURES,
    "unseen": {**FIGURES, "first_frame_l1": 0.0456},
}


def test_every_figure_is_in_the_table() -> None:
    text = card(REPORT)
    for shown in ("0.0123", "0.0456", "0.87", "0.0041", "1.75", "0.93", "0.91", "0.0033", "0.0029", "5.17 M", "15360"):
        assert shown in text, shown
    assert "97.0 %" in text and "../NOTICE" in text and "2 CPU cores, 3 h" in text


def test_another_report_is_another_card() -> None:
    other = copy.deepcopy(REPORT)
    other["known"]["motion"]["spearman"] = 0.11
    assert "0.87" not in card(other).split("styles unseen")[1].split("| 0.87 |")[0].splitlines()[3]
    assert card(other) != card(REPORT)
