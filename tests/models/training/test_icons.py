"""Which icon is which emoji, and its pixels."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.training.icons import Emoji, average, emoji_table, svg_finder, webp_finder

RED = '<rect width="16" height="16" fill="#f00"/>'
BLUE = '<rect width="16" height="16" fill="#00f"/>'


def emoji(code: str, slug: str) -> Emoji:
    return Emoji(code, slug, slug, "", ())


def encoded(content: Any) -> bytes:
    return json.dumps(content).encode()


def table(name: str, char: str = "\N{CAT FACE}", keywords: tuple[str, ...] = ()) -> Emoji:
    (row,) = emoji_table(encoded({char: {"name": name, "group": "Things"}}), encoded({char: keywords}))
    return row


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("cat face", "cat-face"),
        ("man\N{RIGHT SINGLE QUOTATION MARK}s shoe", "mans-shoe"),
        ("jack-o'-lantern", "jack-o-lantern"),
        ("piñata", "pinata"),
        ("salt & pepper", "salt-and-pepper"),
        ("Japanese \N{LEFT DOUBLE QUOTATION MARK}here\N{RIGHT DOUBLE QUOTATION MARK} button", "japanese-here-button"),
        ("keycap: 10", "keycap-10"),
    ],
)
def test_slugs_are_spelt_as_icon_sets_do(name: str, slug: str) -> None:
    assert table(name).slug == slug


def test_codes_leave_variation_selectors_out() -> None:
    assert table("red heart", "\u2764\ufe0f").code == "2764"
    assert table("heart on fire", "\u2764\ufe0f\u200d\U0001f525").code == "2764-200d-1f525"


def test_keywords_are_plain_lower_case_words() -> None:
    assert table("cat face", keywords=("Red_Apple", "fruit", ":)", "", "can't", "été")).keywords == (
        *("red apple", "fruit"),
        "can't",
    )


def test_flags_are_left_out_and_the_order_is_kept() -> None:
    rows = {"b": {"name": "b", "group": "X"}, "f": {"name": "f", "group": "Flags"}, "a": {"name": "a", "group": "X"}}
    assert [row.name for row in emoji_table(encoded(rows), encoded({}))] == ["b", "a"]


def colour(picture: Image.Image | None) -> tuple[int, ...]:
    """In the middle, straight alpha."""
    assert picture is not None
    return picture.convert("RGBA").getpixel((picture.width // 2, picture.height // 2))


def finder(**package: Any):
    chars = package.pop("chars", {})
    return svg_finder({"icons.json": encoded(package), "chars.json": encoded(chars)}, 8)


def test_svg_by_slug_comes_before_code_point() -> None:
    icons = {"fox": {"body": RED}, "other": {"body": BLUE}, "catface": {"body": BLUE}}
    find = finder(icons=icons, chars={"1f98a": "other", "1f43a-fe0f": "other"})
    assert colour(find(emoji("1f98a", "fox"))) == (255, 0, 0, 255)
    assert colour(find(emoji("1f43a", "wolf"))) == (0, 0, 255, 255)
    assert colour(find(emoji("1f431", "cat-face"))) == (0, 0, 255, 255)
    assert find(emoji("1f40d", "snake")) is None


def test_svg_needs_no_list_of_characters() -> None:
    find = svg_finder({"icons.json": encoded({"icons": {"fox": {"body": RED}}})}, 8)
    assert colour(find(emoji("1f98a", "fox"))) == (255, 0, 0, 255)
    assert find(emoji("1f40d", "snake")) is None


def test_aliases_are_followed_unless_they_turn_the_drawing() -> None:
    aliases = {"puppy": {"parent": "dog"}, "fallen-dog": {"parent": "dog", "rotate": 1}}
    find = finder(icons={"dog": {"body": RED}}, aliases=aliases)
    assert colour(find(emoji("0", "puppy"))) == (255, 0, 0, 255)
    assert find(emoji("0", "fallen-dog")) is None


def test_an_icon_that_is_not_square_is_widened_about_its_middle() -> None:
    body = '<rect x="4" y="2" width="8" height="16" fill="#f00"/>'
    find = finder(icons={"tower": {"body": body, "left": 4, "top": 2, "width": 8, "height": 16}})
    picture = find(emoji("0", "tower"))
    assert picture is not None and picture.size == (16, 16)  # twice the size, to be averaged
    opaque = np.array(picture.convert("RGBA"))[..., 3] == 255
    assert opaque.all(axis=0).tolist() == [False] * 4 + [True] * 8 + [False] * 4


def test_webp_by_code_point() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 255, 0, 255)).save(buffer, "WEBP", lossless=True)
    find = webp_finder({"assets/2764-fe0f.webp": buffer.getvalue(), "assets/1f98a.txt": b""})
    assert colour(find(emoji("2764", "red-heart"))) == (0, 255, 0, 255)
    assert find(emoji("1f98a", "fox")) is None


def test_average_premultiplies_and_does_not_mix_in_invisible_colours() -> None:
    picture = Image.new("RGBA", (4, 4), (0, 255, 0, 0))  # green, but none of it to be seen
    picture.paste((200, 0, 0, 255), (0, 0, 1, 4))
    small = average(picture, 2)
    assert small.dtype == np.uint8 and small.shape == (2, 2, 4)
    np.testing.assert_allclose(small[:, 0], [[100, 0, 0, 128]] * 2, atol=1)
    assert not small[:, 1].any()


def test_average_centres_what_is_not_square() -> None:
    small = average(Image.new("RGB", (8, 4), (9, 9, 9)), 8)
    assert (small[..., 3] == 255).all(axis=1).tolist() == [False] * 2 + [True] * 4 + [False] * 2
