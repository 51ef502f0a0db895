"""Icon packages read as drawings: which icon is which emoji, and its pixels with alpha."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Emoji:
    """One entry of Unicode's list; code is its code points in hexadecimal, joined by "-", less variation selectors."""

    code: str
    slug: str
    name: str
    group: str
    keywords: tuple[str, ...]


def emoji_table(unicode_json: bytes, keywords_json: bytes) -> list[Emoji]:
    """Every emoji but the flags, in Unicode's order, from unicode-emoji-json (which has no skin tones) and emojilib."""
    table, words = json.loads(unicode_json), json.loads(keywords_json)
    return [
        Emoji(_code(emoji), _slug(row["name"]), row["name"], row["group"], _plain(words.get(emoji, ())))
        for emoji, row in table.items()
        if row["group"] != "Flags"
    ]


def _plain(words: Sequence[str]) -> tuple[str, ...]:
    """Keywords as lower-case English; emoticons such as ":D" are left out."""
    spaced = (word.lower().replace("_", " ") for word in words)
    return tuple(word for word in spaced if re.fullmatch(r"[a-z0-9][a-z0-9 '-]*", word))


def _code(emoji: str) -> str:
    return "-".join(f"{ord(char):x}" for char in emoji if char != "\ufe0f")


def _slug(name: str) -> str:
    """The Unicode name as icon sets spell it: "man’s shoe" -> "mans-shoe"."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", " and ")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def svg_finder(files: Mapping[str, bytes], size: int) -> Callable[[Emoji], Image.Image | None]:
    """Look-up of an emoji's drawing in an Iconify package: by slug, by code point, by name without hyphens."""
    package = json.loads(files["icons.json"])
    icons = package["icons"]
    # An alias with another key turns or flips its parent, which would be a wrong drawing.
    parents = {name: a["parent"] for name, a in package.get("aliases", {}).items() if set(a) == {"parent"}}
    chars = {code.replace("-fe0f", ""): name for code, name in json.loads(files.get("chars.json", b"{}")).items()}

    def find(emoji: Emoji) -> Image.Image | None:
        for name in (emoji.slug, chars.get(emoji.code, ""), emoji.slug.replace("-", "")):
            icon = icons.get(parents.get(name, name))
            if icon is not None:
                png = resvg_py.svg_to_bytes(svg_string=_svg(package, icon), width=2 * size, skip_system_fonts=True)
                return Image.open(io.BytesIO(bytes(png)))
        return None

    return find


def _svg(package: Mapping[str, int], icon: Mapping[str, int]) -> str:
    """A whole SVG file for one Iconify icon, widened to a square about its middle."""
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's own
    left, top, width, height = ({**defaults, **package, **icon}[key] for key in defaults)
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} width="{side}" height="{side}" viewBox="{box}">{icon["body"]}</svg>'


def webp_finder(files: Mapping[str, bytes]) -> Callable[[Emoji], Image.Image | None]:
    """Look-up of an emoji's drawing in a package of WebP files named by code point."""
    names = {Path(name).stem.replace("-fe0f", ""): name for name in files if name.endswith(".webp")}

    def find(emoji: Emoji) -> Image.Image | None:
        name = names.get(emoji.code)
        return None if name is None else Image.open(io.BytesIO(files[name]))

    return find


def average(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """Centre a picture on a transparent square and average it down to uint8 [size, size, 4], premultiplied.

    Averaging straight alpha instead would mix the colour of invisible pixels (black) into the rim.
    """
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture.convert("RGBA"), ((side - picture.width) // 2, (side - picture.height) // 2))
    small = square.convert("RGBa").resize((size, size), Image.Resampling.BOX)  # RGBa is Pillow's premultiplied mode
    return np.frombuffer(small.tobytes(), np.uint8).reshape(size, size, 4)
