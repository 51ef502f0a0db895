"""The stamp of a folder's files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from models.spec.files import stamp


def test_it_is_another_one_when_a_file_is(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "a", tmp_path / "weights"
    (folder / "unet").mkdir(parents=True)
    weights = folder / "unet" / "w"
    weights.write_bytes(b"1")
    elsewhere.write_bytes(b"1")
    (folder / "link").symlink_to(elsewhere)
    seen = [stamp([folder])]
    assert stamp([folder]) == seen[0]
    shutil.copytree(folder, tmp_path / "b", symlinks=True)
    assert stamp([tmp_path / "b"]) == seen[0], "where the folder lies does not matter"

    def is_new() -> bool:
        seen.append(stamp([folder]))
        return seen[-1] not in seen[:-1]

    weights.write_bytes(b"12")
    assert is_new(), "another size"
    os.utime(weights, ns=(0, 5))
    assert is_new(), "another time"
    os.utime(elsewhere, ns=(0, 5))
    assert is_new(), "behind a link"
    (folder / "unet" / "v").touch()
    assert is_new(), "one more"
    weights.unlink()
    assert is_new(), "one less"
    assert stamp([folder, tmp_path / "b"]) not in seen, "two folders"
    assert stamp([tmp_path / "gone"]) == stamp([])
