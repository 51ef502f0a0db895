"""``darkroom bench``: the benchmarks, which are part of a checkout and not of the installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.terminal import failure

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where there is one."""
RUNS = 'if __name__ == "__main__":'
"""What a benchmark has, and what they share has not."""


def bench(
    name: Annotated[str, typer.Argument(help="Of the benchmark: benchmarks/README.md describes them.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Of its own, such as --help. Paths begin at the checkout.")
    ] = None,
) -> None:
    """Run a benchmark of this checkout, as `python -m benchmarks.NAME` does there: `darkroom bench kernels --tune`."""
    found = benchmarks()
    if not found:
        raise failure(f"{ROOT} has no benchmarks: they need a checkout, installed with `make install`")
    if name not in found:
        raise failure(f"there is no benchmark {name!r}: expected one of {', '.join(found)}")
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *(arguments or ())], cwd=ROOT)
    raise typer.Exit(done.returncode)


def benchmarks() -> list[str]:
    """Names of the benchmarks of the checkout, sorted; none in an installed package."""
    if not (ROOT / "pyproject.toml").is_file():  # beside an installed package others may have a folder of that name
        return []
    modules = sorted((ROOT / "benchmarks").glob("*.py"))
    return [path.stem for path in modules if RUNS in path.read_text(encoding="utf-8")]
