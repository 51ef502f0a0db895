"""Kernels on a machine without Triton: importable, and torch does the work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
import torch
from kernels import attention, language, temporal_resnet
assert not language.HAS_TRITON and not language.INTERPRETED
x = torch.ones(1, 2, 4)
print(attention.attention(x, x, x, 2).sum().item())
"""


def test_ops_run_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 8.0
