"""Runs the tests in ``interpreted/``: Triton reads its switch when a process first imports a kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.language import HAS_TRITON
from tests.kernels.cases import CASES, TOLERANCES

ROOT = Path(__file__).resolve().parents[2]


pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not HAS_TRITON, reason="Triton is published for Linux alone"),
]


def passed(marks: str) -> int:
    """Run the tests with these marks, and count those that passed."""
    options = ["-q", "-p", "no:cacheprovider", "--timeout=900", "-m", marks]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/kernels/interpreted"],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found, done.stdout
    return int(found[1])


def test_kernels_in_the_interpreter() -> None:
    assert passed("not slow") > len(CASES) * len(TOLERANCES)


@pytest.mark.slow
def test_large_networks_in_the_interpreter() -> None:
    assert passed("slow") > 0
