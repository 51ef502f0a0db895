"""The published systems: their configs, by which a single file is known and which it lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class System:
    """One published system, as its folder would describe it."""

    name: str
    layout: str
    """Of its single file; see :mod:`models.checkpoints.single_file`."""
    licence: str
    """Identifier of the licence that its weights were published under."""
    files: Mapping[str, dict[str, Any]]
    """The JSON files of its folder by path: configs of parts, scheduler, index."""
    parts: Mapping[str, dict[str, Any]]
    """Config of each network, by the name of its folder."""
    tokenizers: tuple[str, ...]
    """Folders of tokenizers, which no single file holds."""


_OF_SOME = {
    "feature_extractor": "feature_extractor/preprocessor_config.json",
    "low_res_scheduler": "low_res_scheduler/scheduler_config.json",
}
"""Files that not all systems have."""


@cache
def systems() -> Mapping[str, System]:
    """All known, by name; those that have the same shapes stand behind the most common one."""
    folder = resources.files("models.checkpoints") / "published"
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    return {name: _read(name, json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))) for name in order}


def _read(name: str, content: dict[str, Any]) -> System:
    parts: dict[str, dict[str, Any]] = content["parts"]
    files = {f"{part}/config.json": config for part, config in parts.items()}
    files["model_index.json"] = content["model_index"]
    files["scheduler/scheduler_config.json"] = content["scheduler"]
    for kind, path in _OF_SOME.items():
        if kind in content:
            files[path] = content[kind]
    return System(name, content["layout"], content["licence"], files, parts, tuple(content["tokenizers"]))
