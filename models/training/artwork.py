"""The artwork behind Darkroom's trained models: free emoji drawings from npm, as small RGBA pictures.

`download` fetches the packages, `render` turns them into a `Drawings` table. Both keep what they have made in one
folder, so a second call is quick and an interrupted one goes on with the style it was at.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.training.icons import average, emoji_table, svg_finder, webp_finder

LOCK = Path(__file__).with_name("artwork.lock.json")  # tarball name -> SHA-256, so that everyone trains on the same art


@dataclass(frozen=True)
class Package:
    """One npm package: its name, pinned version, licence (SPDX) and our style word ("" = names only)."""

    name: str
    version: str
    licence: str
    style: str = ""

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives the package."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


UNICODE = Package("unicode-emoji-json", "0.9.0", "MIT")
KEYWORDS = Package("emojilib", "4.0.3", "MIT")
# The order is the order of rendering: the styles that the default model draws first, the slow one last.
ARTWORK = (
    Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "3d"),
    Package("@iconify-json/noto", "1.2.9", "Apache-2.0", "noto"),
    Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "twemoji"),
    Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "flat"),
    Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "blob"),
    Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "classic"),
    Package("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "fx"),
    Package("@iconify-json/fluent-emoji", "1.2.7", "MIT", "gradient"),
)
PACKAGES = (UNICODE, KEYWORDS, *ARTWORK)
STYLES = tuple(package.style for package in ARTWORK)


@dataclass(frozen=True)
class Drawings:
    """N drawings of C concepts in S styles.

    pixels is uint8 [N, H, W, 4], sRGB **premultiplied** by alpha; concept and style are int64 [N], indices into the
    tuples slugs, names, groups, keywords (each of length C) and styles (of length S).
    """

    pixels: NDArray[np.uint8]
    concept: NDArray[np.int64]
    style: NDArray[np.int64]
    slugs: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def on_background(self, rgb: tuple[int, int, int] = (255, 255, 255)) -> NDArray[np.uint8]:
        """All drawings on one colour (0 to 255 a channel): uint8 [N, H, W, 3]."""
        return composite(self.pixels, np.array(rgb, np.uint8))

    def select(self, slugs: Sequence[str] | None = None, styles: Sequence[str] | None = None) -> Drawings:
        """Only the drawings of these concepts and styles; the tables and their indices stay as they are.

        Raises ValueError on a slug or style that the tables do not have.
        """
        keep = np.ones(len(self), bool)
        for wanted, known, column in ((slugs, self.slugs, self.concept), (styles, self.styles, self.style)):
            if wanted is not None:
                keep &= np.isin(column, [_index(known, word) for word in wanted])
        table = (self.slugs, self.names, self.groups, self.keywords, self.styles)
        return Drawings(self.pixels[keep], self.concept[keep], self.style[keep], *table)


def composite(premultiplied: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay uint8 [..., H, W, 4] premultiplied pictures on uint8 [..., 3] colours or [..., H, W, 3] pictures."""
    colour, alpha = premultiplied[..., :3].astype(np.uint16), premultiplied[..., 3:].astype(np.uint16)
    behind = background.astype(np.uint16) * (255 - alpha)
    return np.minimum(colour + (behind + 127) // 255, 255).astype(np.uint8)


def download(folder: Path, packages: Sequence[Package] = PACKAGES, lock: Path = LOCK) -> None:
    """Fetch the packages' tarballs into folder with the user's own `npm`, leaving out those already there.

    Every tarball is checked against the SHA-256 in lock; one that lock does not list yet is recorded there.
    Raises RuntimeError when npm is missing or fails, or when a tarball is not the recorded one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = json.loads(lock.read_text()) if lock.exists() else {}
    known = dict(hashes)
    for package in track(packages, "artwork: download"):
        path = folder / package.tarball
        if not path.exists():
            _npm_pack(package, folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if hashes.setdefault(package.tarball, digest) != digest:
            raise RuntimeError(f"{path} has SHA-256 {digest}, expected {hashes[package.tarball]}; delete it to retry")
    if hashes != known:
        lock.write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n")


def render(folder: Path, size: int = 64, packages: Sequence[Package] = ARTWORK, lock: Path = LOCK) -> Drawings:
    """Render the downloaded artwork packages to size x size pixels and return all drawings as one table.

    Each style is kept in folder as an .npz of its own, named after its style, size, tarballs and renderer. Raises
    ValueError when size does not divide 256 and RuntimeError when a tarball has not been downloaded.
    """
    if size < 1 or 256 % size:
        raise ValueError(f"size must divide 256, got {size}")
    return _join([_load(cache_path(folder, size, package, lock), folder, size, package) for package in packages])


def cache_path(folder: Path, size: int, package: Package, lock: Path = LOCK) -> Path:
    """Where `render` keeps one style: a change of the art, the names or the renderers changes the file name."""
    if not lock.exists():
        raise RuntimeError(f"{lock} is missing: download the artwork first")
    hashes = json.loads(lock.read_text())
    parts = [hashes.get(p.tarball, "") for p in (UNICODE, KEYWORDS, package)]
    key = "\n".join([*parts, version("resvg_py"), version("pillow")])
    return folder / f"artwork-{package.style}-{size}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"


def _npm_pack(package: Package, folder: Path) -> None:
    """Run `npm pack`, which downloads the package's tarball into folder."""
    wanted = f"{package.name}@{package.version}"
    try:
        subprocess.run(["npm", "pack", "--silent", wanted], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError("npm is not installed; it is needed once, to download the artwork") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"npm pack {wanted} failed: {error.stderr.strip()}") from error


def _load(path: Path, folder: Path, size: int, package: Package) -> Drawings:
    """One style, from its cache file, which is made when it is not there."""
    if not path.exists():
        # Written beside and then renamed, so that an interruption never leaves half a file under the real name.
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            _render_style(file, folder, size, package)
        part.replace(path)
    with np.load(path) as file:
        text = {key: tuple(str(word) for word in file[key]) for key in ("slugs", "names", "groups", "keywords")}
        keywords = tuple(tuple(words.split("|")) if words else () for words in text.pop("keywords"))
        style = np.zeros(len(file["concept"]), np.int64)
        return Drawings(file["pixels"], file["concept"], style, keywords=keywords, styles=(package.style,), **text)


def _join(parts: Sequence[Drawings]) -> Drawings:
    """Put the styles' tables under each other; they share one concept table."""
    if not parts:
        raise ValueError("no artwork package was named")
    first = parts[0]
    return Drawings(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.concept for part in parts]),
        np.concatenate([part.style + i for i, part in enumerate(parts)]),
        *(first.slugs, first.names, first.groups, first.keywords),
        styles=tuple(part.styles[0] for part in parts),
    )


def _render_style(file: IO[bytes], folder: Path, size: int, package: Package) -> None:
    """Write one style's cache: its drawings and the whole concept table."""
    names, words = _members(folder, UNICODE), _members(folder, KEYWORDS)
    concepts = emoji_table(names["data-by-emoji.json"], words["dist/emoji-en-US.json"])
    files = _members(folder, package)
    find = svg_finder(files, size) if "icons.json" in files else webp_finder(files)
    pixels, found = [], []
    for i, concept in enumerate(track(concepts, f"artwork: {package.style}")):
        picture = find(concept)
        if picture is not None:
            pixels.append(average(picture, size))
            found.append(i)
    if not pixels:
        raise RuntimeError(f"{package.name}@{package.version} has no drawing of a known concept")
    table = {key: np.array([getattr(c, key) for c in concepts]) for key in ("slug", "name", "group")}
    keywords = np.array(["|".join(concept.keywords) for concept in concepts])
    np.savez_compressed(
        file,
        pixels=np.stack(pixels),
        concept=np.array(found, np.int64),
        slugs=table["slug"],
        names=table["name"],
        groups=table["group"],
        keywords=keywords,
    )


def _members(folder: Path, package: Package) -> Mapping[str, bytes]:
    """The files of a package's tarball by their path inside it."""
    path = folder / package.tarball
    if not path.exists():
        raise RuntimeError(f"{path} is missing: download the artwork first")
    with tarfile.open(path) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        return {name.split("/", 1)[1]: file.read() for name, file in files if file is not None}


def _index(known: Sequence[str], word: str) -> int:
    if word not in known:
        raise ValueError(f"unknown concept or style {word!r}")
    return known.index(word)
