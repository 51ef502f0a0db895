"""Animated drawings: Microsoft's Fluent emoji in motion, as small RGBA clips."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from rich.progress import track

from models.training.artwork import LOCK, Package
from models.training.icons import average

ANIMATIONS = tuple(Package(f"@lobehub/fluent-emoji-anim-{part}", "1.0.0", "MIT") for part in (1, 2, 3, 4))
SOURCE_FPS = 24
KEPT_EVERY = 2
"""Frames of the source per frame that is kept."""
FPS = SOURCE_FPS // KEPT_EVERY
SKIN_TONES = {f"1f3f{digit}" for digit in "bcdef"}


@dataclass(frozen=True)
class Animations:
    """N loops, one behind the other.

    frames is uint8 [F, H, W, 4], sRGB premultiplied by alpha, at :data:`FPS` frames a second; loop i has the rows
    ``ends[i - 1]`` to ``ends[i]``, and codes[i] are its code points in hexadecimal.
    """

    frames: NDArray[np.uint8]
    ends: NDArray[np.int64]
    codes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ends)

    def loop(self, index: int) -> NDArray[np.uint8]:
        """All frames of one loop: uint8 [T, H, W, 4]."""
        return self.frames[self.ends[index - 1] if index else 0 : self.ends[index]]


def render_animations(
    folder: Path, size: int = 64, packages: Sequence[Package] = ANIMATIONS, lock: Path = LOCK
) -> Animations:
    """Read the downloaded packages and keep what was read in ``folder``, one file a package.

    People in five skin tones are left out: they move alike. So are files of a single frame.

    Raises:
        RuntimeError: a tarball has not been downloaded.
    """
    parts = [_load(folder, size, package, lock) for package in packages]
    offsets = np.cumsum([0, *(len(part.frames) for part in parts[:-1])])
    return Animations(
        np.concatenate([part.frames for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets, strict=True)]),
        tuple(code for part in parts for code in part.codes),
    )


def _load(folder: Path, size: int, package: Package, lock: Path) -> Animations:
    tarball = folder / package.tarball
    if not tarball.exists():
        raise RuntimeError(f"{tarball} is missing: download the artwork first")
    digest = json.loads(lock.read_text()).get(package.tarball, "")
    name = hashlib.sha256(f"{digest} {KEPT_EVERY}".encode()).hexdigest()[:12]
    path = folder / f"animations-{package.tarball.removesuffix('.tgz')}-{size}-{name}.npz"
    if not path.exists():
        # Written beside and then renamed, so that an interruption never leaves half a file under the real name.
        part = path.with_suffix(".part")
        loops = dict(_loops(tarball, size))
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                frames=np.concatenate(list(loops.values())),
                ends=np.cumsum([len(loop) for loop in loops.values()]),
                codes=np.array(list(loops)),
            )
        part.replace(path)
    with np.load(path) as file:
        return Animations(file["frames"], file["ends"], tuple(str(code) for code in file["codes"]))


def _loops(tarball: Path, size: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(code points, frames [T, size, size, 4]) of every animated file of a package."""
    with tarfile.open(tarball) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".webp")]
        for member in track(members, tarball.stem):
            code = Path(member.name).stem.replace("-fe0f", "")
            file = tar.extractfile(member)
            if file is None or SKIN_TONES & set(code.split("-")):
                continue
            frames = frames_of(file.read(), size)
            if len(frames) > 1:
                yield code, frames


def frames_of(webp: bytes, size: int) -> NDArray[np.uint8]:
    """Every :data:`KEPT_EVERY`-th frame of an animated file, averaged down: uint8 [T, size, size, 4], premultiplied."""
    with Image.open(io.BytesIO(webp)) as file:
        frames = ImageSequence.Iterator(file)
        return np.stack([average(frame, size) for i, frame in enumerate(frames) if i % KEPT_EVERY == 0])
