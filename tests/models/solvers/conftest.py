"""What the tests of solvers share: networks as tiny as theirs run on one thread."""

from __future__ import annotations

from tests.support.threads import one_thread

__all__ = ["one_thread"]
