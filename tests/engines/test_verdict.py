"""Engines that are right, wrong, broken or silent, in front of the judge."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from engines.verdict import SPREAD_LANES, Recorder, Remembered, Verdict, judge, timed

SAMPLES = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]),), (torch.tensor([[5.0, 6.0]]),)]


def double(x: Tensor) -> Tensor:
    return x * 2.0


def test_an_engine_that_is_near_enough_is_accepted() -> None:
    verdict = judge(lambda x: x * 2.001, double, SAMPLES, tolerance=1e-3, limit_s=10.0)
    assert verdict.accepted and not verdict.reason
    assert verdict.error == pytest.approx(5e-4, rel=1e-2)
    assert verdict.engine_s > 0.0 < verdict.torch_s


def raising(x: Tensor) -> Tensor:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (lambda x: x * 2.1, r"largest error is 5\.0e-02 of the largest output, tolerated is 1\.0e-03"),
        (lambda x: x * math.nan, "largest error is nan"),
        (lambda x: x * math.inf, "largest error is inf"),
        (raising, "it raised RuntimeError: out of memory"),
        (lambda x: x[:, :1] * 2.0, "its outputs have other shapes"),
        (lambda x: (x * 2.0, x), "its outputs have other shapes"),
    ],
)
def test_a_poisoned_engine_is_rejected_with_the_reason(engine: object, reason: str) -> None:
    verdict = judge(engine, double, SAMPLES, tolerance=1e-3, limit_s=10.0)  # type: ignore[arg-type]
    assert not verdict.accepted
    assert re.search(reason, verdict.reason), verdict.reason


def test_one_wrong_sample_is_enough() -> None:
    verdict = judge(lambda x: x * (2.0 if len(x) == 2 else 3.0), double, SAMPLES, tolerance=1e-3, limit_s=10.0)
    assert not verdict.accepted and verdict.error == pytest.approx(0.5)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()  # lets the silent engine's thread end


def test_an_engine_that_never_answers_is_rejected(gate: threading.Event) -> None:
    def silent(x: Tensor) -> Tensor:
        gate.wait(60.0)
        return x

    verdict = judge(silent, double, SAMPLES, tolerance=1e-3, limit_s=0.2)
    assert not verdict.accepted and verdict.reason == "it did not answer within 0.2 s"


def test_rows_that_never_answer_are_rejected_too(gate: threading.Event) -> None:
    calls: list[int] = []

    def silent_alone(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 3:
            gate.wait(60.0)
        return x * 2.0

    verdict = judge(silent_alone, double, SAMPLES[::-1], tolerance=1e-3, limit_s=0.2, rows_are_their_own=True)
    assert not verdict.accepted and verdict.reason.startswith("it did not answer within")


ACCEPTED = Verdict(True, "", 1e-6, 9.0, 9.0)


class Noisy:
    """Takes so long, but for a few calls that another process disturbs."""

    def __init__(self, takes_s: float, clock: list[float], disturbed: set[int]) -> None:
        self.takes_s, self.clock, self.disturbed, self.calls = takes_s, clock, disturbed, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.clock[0] += self.takes_s * (50.0 if self.calls in self.disturbed else 1.0)
        return x


@pytest.mark.parametrize(("takes_s", "slower"), [(0.5, False), (1.0, False), (1.05, False), (1.2, True), (3.0, True)])
@pytest.mark.parametrize("disturbed", [set(), {1, 2, 3, 4, 5, 6}])
def test_an_engines_time_is_a_median_that_a_few_disturbed_calls_do_not_move(
    monkeypatch: pytest.MonkeyPatch, takes_s: float, slower: bool, disturbed: set[int]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("engines.verdict.time.process_time", lambda: clock[0])
    engine, serving = Noisy(takes_s, clock, disturbed), Noisy(1.0, clock, {9, 10})
    verdict = timed(ACCEPTED, engine, serving, SAMPLES)
    assert verdict.slower is slower is not verdict.accepted and verdict.error == ACCEPTED.error
    assert (verdict.engine_s, verdict.torch_s) == pytest.approx((2 * takes_s, 2.0))
    assert verdict.reason == (f"it takes {takes_s:.2f} of torch's time" if slower else "")


def test_a_promise_about_rows_is_checked_where_it_was_made() -> None:
    def near(x: Tensor) -> Tensor:
        return x * 2.0 + (1e-6 if len(x) > 1 else 0.0)

    samples = SAMPLES[::-1]  # the last one has two rows
    assert judge(near, double, samples, tolerance=1e-3, limit_s=10.0).accepted
    verdict = judge(near, double, samples, tolerance=1e-3, limit_s=10.0, rows_are_their_own=True)
    assert not verdict.accepted and "other bytes" in verdict.reason


def test_without_samples_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="without samples"):
        judge(double, double, [], tolerance=1e-3, limit_s=1.0)


def test_answers_outlive_the_network_that_gave_them() -> None:
    calls: list[Tensor] = []
    reference = Remembered(lambda x: calls.append(x) or double(x), SAMPLES)
    assert len(calls) == len(SAMPLES) and reference.seconds > 0.0
    assert judge(double, reference, SAMPLES, tolerance=1e-3, limit_s=10.0).accepted
    assert not judge(lambda x: x * 3.0, reference, SAMPLES, tolerance=1e-3, limit_s=10.0).accepted
    assert len(calls) == len(SAMPLES)


def test_the_recorder_keeps_copies_of_the_latest_inputs() -> None:
    recorder, x = Recorder(double, keep=2), torch.zeros(1)
    for value in (1.0, 2.0, 3.0):
        x.fill_(value)
        assert recorder(x).item() == 2.0 * value  # type: ignore[union-attr]  # one output
    assert [sample[0].item() for sample in recorder.samples] == [2.0, 3.0]
    recorder.stop()
    assert recorder(x).item() == 6.0 and not recorder.samples  # type: ignore[union-attr]


def test_the_recorder_spreads_what_it_keeps_over_all_calls() -> None:
    recorder = Recorder(double, keep=4, spread=True)
    for value in range(37):
        recorder(torch.full((8, 1), float(value)))
    kept = [sample[0] for sample in recorder.samples]
    assert [one[0].item() for one in kept] == [0.0, 16.0, 32.0] and recorder.calls == 37
    assert {len(one) for one in kept} == {SPREAD_LANES}, "of each call the first lanes"
