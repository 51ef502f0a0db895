"""What a profile takes more of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, CONCEPTS, Concept
from models.training.loop import Recipe
from models.training.profile import PROFILES, SMALL, Profile, every_concept

RECIPE = Recipe(steps=10, peak_lr=1e-3, final_lr=1e-5)


def table() -> Drawings:
    """No drawings, and the names of four: one chosen, two others, a person."""
    slugs, groups = (CONCEPTS[0].slug, "zebu", "rusty-key", "pilot"), ("Objects", "Animals", "Objects", "People & Body")
    nothing = np.zeros(0, np.int64)
    pixels = np.zeros((0, 8, 8, 4), np.uint8)
    return Drawings(
        pixels, nothing, nothing, slugs, ("x", "Zebu", "Rusty Key", "pilot"), groups, ((),) * 4, ("3d", "flat")
    )


def test_everything_is_all_but_people() -> None:
    assert every_concept(table()) == (*CONCEPTS, Concept("zebu", "zebu"), Concept("rusty-key", "rusty key"))
    assert PROFILES["full"].concepts(table()) == every_concept(table()) and SMALL.concepts(table()) == CONCEPTS


def test_styles_are_the_tables_or_the_chosen() -> None:
    assert PROFILES["full"].styles(table()) == ("3d", "flat") and SMALL.styles(table()) == CAPTION_STYLES


def test_a_recipe_is_lengthened_and_nothing_else() -> None:
    assert SMALL.recipe(RECIPE) == RECIPE and Profile(steps=3).recipe(RECIPE) == replace(RECIPE, steps=30)


def test_a_gpu_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    SMALL.check()
    with pytest.raises(ValueError, match="profile=full trains on a GPU"):
        PROFILES["full"].check()
