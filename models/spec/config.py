"""Reading the published JSON configs: what every spec here shares. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
"""Of a JSON file. The largest that are published, vocabularies and indexes of shards, have a few."""
MAX_COUNT = 200
"""Of blocks, layers or levels. No published network has a hundred."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError when there is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {MAX_BYTES} at most")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


_COUNTS = (
    "layers_per_block",
    "transformer_layers_per_block",
    "num_layers",
    "num_hidden_layers",
    "num_encoder_blocks",
    "num_decoder_blocks",
)


def read_config(path: Path) -> dict[str, Any]:
    """The config of a network: a JSON object whose numbers of layers are such that it can be built at all.

    Raises:
        ValueError: there is none, or it asks for more layers than any network has.
    """
    config = read_json(path)
    for key in _COUNTS:
        _check_count(path, key, config.get(key))
    if isinstance(levels := config.get("block_out_channels"), list):
        _check_count(path, "levels of block_out_channels", len(levels))
    return config


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with the content of this file, as a ValueError that names it."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]!r}") from error
    except (TypeError, AttributeError, ArithmeticError, AssertionError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} makes no sense: {error}") from error


def known(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config that are fields of the dataclass ``cls``, lists as tuples."""
    names = {f.name for f in fields(cls)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in names}


def per_level(value: int | list[int], levels: int) -> tuple[int, ...]:
    """One number for every level, given once or as a list."""
    return (value,) * levels if isinstance(value, int) else tuple(value)


def require(config: dict[str, Any], **expected: Any) -> None:
    """Raise ValueError when a config gives one of these options another value than the only one supported."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"config {key}={config[key]!r} is not supported, expected {value!r}")


def _check_count(path: Path, key: str, value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            _check_count(path, key, each)
    elif value is not None and (not isinstance(value, int) or not 0 <= value <= MAX_COUNT):
        raise ValueError(f"{path}: {key}={value!r}, expected a whole number, at most {MAX_COUNT}")
