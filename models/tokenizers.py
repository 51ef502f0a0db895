"""Tokenizers from published folders. They are the transformers library's, which imports no network for them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from transformers import CLIPTokenizer, T5Tokenizer

T = TypeVar("T", CLIPTokenizer, T5Tokenizer)


def load_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in a folder such as ``tokenizer``; errors as :func:`load_t5_tokenizer`."""
    return _load(CLIPTokenizer, folder)


def load_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """The tokenizer in a folder such as ``tokenizer_3``.

    Raises:
        ValueError: there is none, or it makes no sense.
    """
    return _load(T5Tokenizer, folder)


def _load(cls: type[T], folder: Path) -> T:
    if not folder.is_dir():  # the library would take its path for the name of something to download
        raise ValueError(f"{folder} is missing")
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each kind of damage has an error of its own
        raise ValueError(f"{folder} holds no tokenizer that makes sense: {error}") from error
