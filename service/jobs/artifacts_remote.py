"""Artifacts in an object store, or wherever else fsspec reaches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import fsspec


class RemoteFolder:
    """A :class:`service.jobs.artifacts.Folder` under a URL.

    An object store replaces an object at once. Other file systems may not, so what is read is compared with its name,
    and what is there is written again: bytes that were cut off count as missing, and the next writer mends them.

    Args:
        url: as fsspec reads it; credentials come from where the driver looks for them.

    Raises:
        ValueError: the protocol is unknown, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ValueError(f"artifacts at {url}: {error}") from error

    def write(self, path: str, content: bytes) -> None:
        """Send the whole file."""
        target = self._at(path)
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(target, content)

    def read(self, path: str) -> bytes:
        """The bytes there."""
        content: bytes = self._files.cat_file(self._at(path))
        if hashlib.sha256(content).hexdigest() != path.rpartition("/")[2]:
            raise FileNotFoundError(f"{path} was not written to its end")
        return content

    def files(self) -> Iterator[tuple[str, int, float]]:
        """Every file, with bytes and time of the last write."""
        self._files.invalidate_cache()  # listings are kept, and other processes write
        for path, found in self._files.find(self._root, detail=True).items():
            yield path.rpartition("/")[2], int(found["size"]), self._written_at(path, found)

    def remove(self, path: str, written_before: float) -> bool:
        """Delete a file. One that is written again between the look and the deletion is lost, so leave files some
        time after which nobody refers to them anew."""
        target = self._at(path)
        self._files.invalidate_cache()
        try:
            if self._written_at(target, self._files.info(target)) >= written_before:
                return False
            self._files.rm_file(target)
        except FileNotFoundError:
            return False
        return True

    def tidy(self, written_before: float) -> None:
        """Nothing: an upload that was cut off is no file."""

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _written_at(self, path: str, found: dict[str, Any]) -> float:
        # The field's name differs between drivers; asking for it can cost a request a file.
        when = found.get("LastModified") or found.get("mtime") or self._files.modified(path)
        return when.timestamp() if isinstance(when, datetime) else float(when)
