"""A single file made into a model folder: configs written out, tokenizers copied, the file linked in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from models.checkpoints.systems import System, systems
from models.inspection import inspect

OPTIONAL = "text_encoder_3"
"""T5, which SD3 can do without."""


def adopt(file: Path, folder: Path, tokenizers: Path, name: str | None = None) -> System:
    """Make ``folder`` a model folder around a single file, which stays where it is.

    Args:
        file: of a published layout, whole.
        folder: to be made; its name becomes the model's.
        tokenizers: a model folder whose tokenizers are copied, of the same system.
        name: of the published system, where several have the same networks (SDXL and SDXL-Turbo); else the first.

    Returns:
        The system whose configs were written.

    Raises:
        ValueError: the file is not whole or of another system than ``name``, ``folder`` is there already, or
            ``tokenizers`` lacks one.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already")
    system, parts = _whole(file, name)
    wanted = [each for each in system.tokenizers if each.replace("tokenizer", "text_encoder") in parts]
    if absent := [each for each in wanted if not (tokenizers / each).is_dir()]:
        raise ValueError(f"{tokenizers} holds no {absent[0]}")
    begun = folder.with_name(f".{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    for path, content in system.files.items():
        if path.endswith("/config.json") and Path(path).parent.name not in parts:
            continue
        (begun / path).parent.mkdir(parents=True, exist_ok=True)
        (begun / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for each in wanted:
        shutil.copytree(tokenizers / each, begun / each)
    (begun / file.name).symlink_to(file.absolute())
    begun.rename(folder)
    return system


def _whole(file: Path, name: str | None) -> tuple[System, set[str]]:
    """The system of a file and its parts, when all can be loaded that the system needs."""
    found = inspect(file)
    if faults := [f"{part.name}: {part.fault}" for part in found.parts if part.fault]:
        raise ValueError(f"{file} cannot be served: {'; '.join(faults)}")
    if not found.system:
        raise ValueError(f"{file} is no single file of a published system, but {found.kind}")
    system, parts = systems()[found.system], {part.name for part in found.parts}
    if missing := sorted(system.parts.keys() - parts - {OPTIONAL}):
        raise ValueError(f"{file} holds no {missing[0]}, which {system.name} needs")
    return system if name is None else _named(name, system), parts


def _named(name: str, found: System) -> System:
    if name not in systems():
        raise ValueError(f"system {name!r} is not known; known: {', '.join(systems())}")
    system = systems()[name]
    if _networks(system) != _networks(found):
        raise ValueError(f"system {name!r} has other networks than this file, which is {found.name!r}")
    return system


def _networks(system: System) -> dict[str, dict[str, object]]:
    """What must be the same for weights to fit: sizes of pictures and clips need not."""
    free = ("sample_size", "num_frames")
    return {p: {k: v for k, v in config.items() if k not in free} for p, config in system.parts.items()}
