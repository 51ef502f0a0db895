"""Reading the published JSON configs: what every spec here shares. No torch."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


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
