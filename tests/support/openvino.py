"""OpenVINO is an extra, without which its tests are skipped."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def openvino_is_installed() -> bool:
    """Found without importing it."""
    return find_spec("openvino") is not None


needs_openvino = pytest.mark.skipif(not openvino_is_installed(), reason="OpenVINO is not installed")
