"""``darkroom bench`` runs what is in the checkout, and says what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.commands import bench

ECHO = """
import sys
from pathlib import Path

from benchmarks.shared import SHARED

if __name__ == "__main__":
    Path("said").write_text(repr((SHARED, sys.argv[1:])))
    sys.exit(3)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with one benchmark, which writes what it was given, and ends with 3."""
    (tmp_path / "pyproject.toml").touch()
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "shared.py").write_text("SHARED = 7\n")
    (folder / "echo.py").write_text(ECHO)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    return tmp_path


def test_arguments_and_the_exit_status_are_handed_on(checkout: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "echo", "--tune", "--op", "blend", "--help"])
    assert done.exit_code == 3, done.output
    assert (checkout / "said").read_text() == repr((7, ["--tune", "--op", "blend", "--help"]))
    assert CliRunner().invoke(app, ["bench", "echo"]).exit_code == 3
    assert (checkout / "said").read_text() == repr((7, []))


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("name", ["shared", "peers", "../echo", ""])
def test_an_unknown_one_is_told_with_those_that_there_are(name: str) -> None:
    done = CliRunner().invoke(app, ["bench", name])
    assert done.exit_code == 1
    assert done.output.strip() == f"darkroom: there is no benchmark {name!r}: expected one of echo"


@pytest.mark.parametrize("missing", ["benchmarks/echo.py", "pyproject.toml"])
def test_a_package_without_them_says_so(checkout: Path, missing: str) -> None:
    (checkout / missing).unlink()
    done = CliRunner().invoke(app, ["bench", "echo"])
    assert done.exit_code == 1 and f"{checkout} has no benchmarks: they need a checkout" in done.output


def test_this_checkout_has_those_that_are_described() -> None:
    described = (bench.ROOT / "benchmarks" / "README.md").read_text()
    found = bench.benchmarks()
    assert "kernels" in found and not {"workloads", "timing", "report"} & set(found)
    assert [name for name in found if name not in described] == []


def test_a_benchmark_of_this_checkout_runs() -> None:
    command = [sys.executable, "-m", "service.cli", "bench", "simulation", "--help"]
    done = subprocess.run(command, cwd=bench.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--workers" in done.stdout, done.stdout + done.stderr
