"""Attempts on a store that is away: counted, further and further apart, and close together again afterwards."""

from __future__ import annotations

import pytest

from service.errors import Unavailable
from service.metrics import WorkerMetrics
from service.worker.outage import LONGEST_PAUSE_S, Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def away() -> bool:
    raise Unavailable("the server does not answer")


def test_pauses_grow_to_a_limit_and_end_with_the_outage() -> None:
    clock, metrics = Clock(), WorkerMetrics()
    outage = Outage(metrics, clock)
    assert outage.attempt("claim", lambda: False) is False and outage.left_s == 0
    pauses = []
    for _ in range(7):
        assert outage.attempt("claim", away) is None
        pauses.append(round(outage.left_s, 3))
        clock.now += outage.left_s
        assert outage.left_s == 0
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert outage.attempt("renew", lambda: "there") == "there" and outage.left_s == 0
    assert outage.attempt("renew", away) is None and outage.left_s == pytest.approx(0.1)
    counted = [
        metrics.registry.get_sample_value("darkroom_store_unavailable_total", {"verb": verb})
        for verb in ("claim", "renew")
    ]
    assert counted == [7, 1]


def test_other_faults_are_not_taken_for_an_outage() -> None:
    def broken() -> bool:
        raise RuntimeError("a fault")

    outage = Outage(WorkerMetrics())
    with pytest.raises(RuntimeError):
        outage.attempt("claim", broken)
    assert outage.left_s == 0
