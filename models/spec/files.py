"""Whether the files of a model are still the same ones, without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def stamp(folders: Iterable[Path]) -> str:
    """Hash of names, sizes and times of change of the files in these folders and in the folders directly below: another
    one when a file comes, goes or is replaced. A folder that is not there has none."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
            digest.update(f"{path.relative_to(folder)} {_state(path)}\n".encode())
    return digest.hexdigest()


def _state(path: Path) -> str:
    """Of a link that of the file that it leads to; empty for a folder, and for what has just gone."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if path.is_file() else ""
