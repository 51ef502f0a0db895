"""The table of what serving took and what was promised."""

from __future__ import annotations

from typing import Any

from benchmarks.serving_table import FIGURES, table


def segment(server: str, value: float | None) -> dict[str, Any]:
    return {"server": server, **dict.fromkeys(FIGURES, value)}


def test_it_has_what_was_measured_and_no_more() -> None:
    met = {"name": "a", "value": 0.5, "limit": 0.6, "met": True}
    missed = [
        {"name": "b", "value": 0.5, "limit": 0.45, "met": False},
        {**met, "name": "c", "value": None, "met": False},
    ]
    results = {
        "cpu": {"segments": [segment("lock", 1.0), segment("lock", 3.0), segment("torch", None)], "targets": missed},
        "video": {"segments": [segment("closed", 9.0)], "targets": [met]},
    }
    figures, targets = table(results).split("\n\n")
    assert figures.splitlines()[2:] == [
        "| 16 clients | lock around diffusers |" + " 2 |" * len(FIGURES),
        "| 16 clients | Darkroom, torch, strict |" + "  |" * len(FIGURES),
    ]
    assert targets.splitlines()[2:] == [
        "| b | **0.5** | 0.45 | missed |",
        "| c | not measured | 0.6 | missed |",
        "| a | **0.5** | 0.6 |  |",
    ]
