"""The concept list and its captions."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from models.training.artwork import STYLES
from models.training.concepts import (
    CAPTION_STYLES,
    CONCEPTS,
    FIRST_CONCEPTS,
    HELD_OUT,
    HELD_OUT_PAIRS,
    Concept,
    by_slug,
    captions,
    random_caption,
    read_concepts,
    with_article,
)

CAT = Concept("cat-face", "cat", ("kitty",))


def test_slugs_and_words_are_unique() -> None:
    words = [word for concept in CONCEPTS for word in (concept.name, *concept.synonyms)]
    assert len({concept.slug for concept in CONCEPTS}) == len(CONCEPTS)
    assert len(set(words)) == len(words)
    assert all(word == word.lower() and word.replace(" ", "").isalpha() for word in words)
    assert all(len(concept.synonyms) <= 3 for concept in CONCEPTS)


def test_the_table_is_read_as_slug_name_and_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "concepts.csv"
    path.write_text("slug,name,synonyms\ncat-face,cat,kitty\nfox,fox,\nred-heart,red heart,heart; love\n")
    assert read_concepts(path) == (CAT, Concept("fox", "fox"), Concept("red-heart", "red heart", ("heart", "love")))


def test_held_out_pairs_are_of_the_second_stage_and_leave_two_styles() -> None:
    assert len(HELD_OUT) == HELD_OUT_PAIRS == len({slug for slug, _ in HELD_OUT})
    assert {slug for slug, _ in HELD_OUT} <= {concept.slug for concept in CONCEPTS}
    assert not {slug for slug, _ in HELD_OUT} & {concept.slug for concept in FIRST_CONCEPTS}
    assert Counter(style for _, style in HELD_OUT) == dict.fromkeys(CAPTION_STYLES, HELD_OUT_PAIRS // 3)


def test_the_first_stage_begins_with_a_part_of_the_list() -> None:
    assert CONCEPTS[: len(FIRST_CONCEPTS)] == FIRST_CONCEPTS and 0 < len(FIRST_CONCEPTS) < len(CONCEPTS)


def test_caption_styles_are_artwork_styles() -> None:
    assert set(CAPTION_STYLES) <= set(STYLES)


def test_captions_are_the_phrases_with_the_style_last() -> None:
    assert captions(CAT, "3d") == [
        *("cat 3d", "a cat 3d", "a picture of a cat 3d"),
        *("kitty 3d", "a kitty 3d", "a picture of a kitty 3d"),
    ]
    for concept in CONCEPTS:
        assert all(caption.split()[-1] == "noto" for caption in captions(concept, "noto"))


def test_no_two_concepts_share_a_caption() -> None:
    every = [caption for concept in CONCEPTS for caption in captions(concept, "noto")]
    assert len(set(every)) == len(every)


def test_random_caption_follows_its_generator() -> None:
    first, again = ([random_caption(CAT, "3d", rng) for _ in range(40)] for rng in map(np.random.default_rng, (1, 1)))
    assert first == again
    assert set(first) == set(captions(CAT, "3d"))


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [("cat", "a cat"), ("owl", "an owl"), ("unicorn", "a unicorn"), ("octopus", "an octopus")]
    + [("glass", "a glass"), ("grapes", "grapes"), ("bread", "bread")],
)
def test_with_article(noun: str, phrase: str) -> None:
    assert with_article(noun) == phrase


def test_by_slug_names_the_unknown() -> None:
    assert by_slug(["fox", "bear"])[1].name == "bear"
    assert by_slug() == CONCEPTS
    with pytest.raises(ValueError, match="no-such"):
        by_slug(["fox", "no-such"])
