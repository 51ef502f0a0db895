"""What every result says about itself, and where results are kept. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "measurements.md"
PACKAGES = ("torch", "onnxruntime", "diffusers", "transformers", "fastapi", "uvicorn", "httpx", "numpy")

console = Console(width=None if os.isatty(1) else 140)


@dataclass(frozen=True)
class Target:
    """A figure, and what it was promised to be."""

    name: str
    value: float
    """Not a number when it could not be measured; then the target is missed."""
    limit: float
    at_least: bool
    """Whether larger is better."""

    @property
    def met(self) -> bool:
        """Whether the promise holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Everything above as plain data."""
        return {**asdict(self), "value": finite(self.value), "met": self.met}


def facts(model: Path | None = None) -> dict[str, Any]:
    """When, where and, if it was of one model, on what a measurement was made."""
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": commit(),
    }
    return about if model is None else {**about, "model": {"name": model.name, "weights_sha256": weights_digest(model)}}


def machine() -> dict[str, Any]:
    """The processor, and how busy it is right now."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "load": load(),
    }


def load() -> float:
    """Processes that were running or waiting for a core, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """The commit of this checkout; with ``+changes`` when the code differs from it; empty outside of git."""
    hash_ = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return hash_ + ("+changes" if hash_ and changed else "")


def weights_digest(model: Path) -> str:
    """One hash over a model folder's weight files."""
    digest = hashlib.sha256()
    for path in sorted(model.rglob("*.safetensors")):
        digest.update(path.relative_to(model).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save(path: Path, name: str, content: dict[str, Any]) -> None:
    """Put ``content`` under ``name`` into the JSON file ``path``; what else it holds stays."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps({**known, name: content}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)
    console.print(f"{name}: written to {path}")


def document(name: str, table: str, path: Path = DOCUMENT) -> None:
    """Put ``table`` between the marks of ``name`` in a Markdown file.

    Raises:
        ValueError: the file has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} lacks the marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def finite(value: float) -> float | None:
    """``value`` in four digits, and None for what JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def percentile(values: Sequence[float], share: float) -> float:
    """The ``share`` percentile of ``values``, not a number when there are none."""
    return float(np.percentile(values, share)) if len(values) else math.nan


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers in four digits, a dash for none."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    console.print(table)


def print_targets(targets: Sequence[Target]) -> None:
    """Figures beside what they were promised to be."""
    rows = [
        (t.name, t.value, f"{'>=' if t.at_least else '<='} {t.limit:g}", "met" if t.met else "NOT MET") for t in targets
    ]
    print_rows("Targets", ("figure", "measured", "target", ""), rows)


def _cell(content: object) -> str:
    if isinstance(content, float):
        return f"{content:.4g}" if math.isfinite(content) else "-"
    return str(content)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
