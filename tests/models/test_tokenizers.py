"""Tokenizers: what a folder holds, or what is wrong with it; and no network with them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from tests.support.tiny_towers import write_tiny_sd3

ROOT = Path(__file__).parents[2]


def test_it_is_what_the_folder_holds(sdxl_folder: Path, tmp_path: Path) -> None:
    assert load_clip_tokenizer(sdxl_folder / "tokenizer").model_max_length == 20
    write_tiny_sd3(tmp_path)
    assert load_t5_tokenizer(tmp_path / "tokenizer_3")("a red cat").input_ids


@pytest.mark.parametrize("load", [load_clip_tokenizer, load_t5_tokenizer])
def test_a_tokenizer_that_is_none(load: Callable[[Path], Any], sdxl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone is missing"):
        load(tmp_path / "gone")
    shutil.copytree(sdxl_folder / "tokenizer", tmp_path / "tokenizer")
    for path in (tmp_path / "tokenizer").iterdir():
        path.write_text("{" * 100)
    with pytest.raises(ValueError, match="tokenizer holds no tokenizer that makes sense"):
        load(tmp_path / "tokenizer")


@pytest.mark.parametrize(("module", "there"), [("models.tokenizers", False), ("models.encoders", True)])
def test_networks_are_not_imported_with_it(module: str, there: bool) -> None:
    code = f"import sys, {module}; print('transformers.modeling_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{there}\n"
