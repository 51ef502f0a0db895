"""The line of clients that were told when to come back: arithmetic, and a crowd in virtual time."""

from __future__ import annotations

import heapq
import random

import pytest

from service.api.admission import GRACE_S, MARGIN, MAX_PROMISES, MAX_WAIT_S, Line


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nobody_waits_while_there_is_room() -> None:
    line = Line(4, Clock())
    assert [line.ask("a", queued, 1.0) for queued in (0, 3)] == [None, None] and len(line) == 0


def test_each_is_promised_a_place_of_its_own() -> None:
    line = Line(4, Clock())
    waits = [line.promise(str(number), 4, 2.0) for number in range(3)]
    assert waits == pytest.approx([2.0 * MARGIN, 4.0 * MARGIN, 6.0 * MARGIN]) and len(line) == 3
    assert Line(4, Clock()).promise("a", 9, 2.0) == pytest.approx(12.0 * MARGIN), "five more must go first"


def test_who_comes_back_in_time_is_let_in_and_who_is_new_is_not() -> None:
    clock = Clock()
    line = Line(4, clock)
    wait_s = line.promise("a", 4, 5.0)
    assert line.ask("a", 4, 5.0) == pytest.approx(6.0), "too early: it is told what is left"
    assert len(line) == 1, "and that is no second promise"
    clock.now = wait_s + 0.5
    assert line.ask("b", 3, 5.0) is not None, "the one free place is promised"
    assert line.ask("a", 3, 5.0) is None
    assert line.ask("c", 2, 5.0) is None, "there are two places, and one is promised, to b"


def test_who_asks_the_same_twice_has_two_places() -> None:
    clock = Clock()
    line = Line(1, clock)
    line.promise("a", 1, 2.0)
    line.promise("a", 1, 2.0)
    clock.now = 6.0
    assert line.ask("a", 0, 2.0) is None and line.ask("a", 0, 2.0) is None and len(line) == 0


def test_a_promise_that_nobody_takes_up_is_forgotten() -> None:
    clock = Clock()
    line = Line(1, clock)
    line.promise("a", 1, 1.0)
    line.promise("a", 1, 100.0)
    line.promise("b", 1, 1.0)
    clock.now = 4.0 + GRACE_S
    assert len(line) == 0 and line.ask("c", 0, 1.0) is None and not line._due_of


def test_nothing_is_promised_beyond_what_clients_wait_for() -> None:
    line = Line(1, Clock())
    assert line.promise("a", 1, 1000.0) > MAX_WAIT_S and len(line) == 0
    for number in range(MAX_PROMISES + 10):
        line.promise(str(number), 1, 0.001)
    assert len(line) == MAX_PROMISES


@pytest.mark.parametrize("patient", [True, False], ids=["as told", "every second"])
def test_at_three_times_the_capacity_waiting_as_told_gets_in(patient: bool) -> None:
    """New clients come at three times the rate of the worker; the refused wait, or do not and ask every second."""
    draw, clock = random.Random(5), Clock()
    seconds, max_queued = 0.5, 20
    line, queued = Line(max_queued, clock), 0
    events = [(0.0, 0, "worker", 0)]
    arrival = 0.0
    for number in range(1, 1500):
        arrival += draw.expovariate(3 / seconds)
        heapq.heappush(events, (arrival, number, f"client {number}", 0))
    told = kept = tie = 0
    while events and clock.now < 200:
        clock.now, _, who, tries = heapq.heappop(events)
        tie += 1
        if who == "worker":
            queued = max(0, queued - 1)
            heapq.heappush(events, (clock.now + seconds, -tie, who, 0))
            continue
        wait_s = line.ask(who, queued, seconds) if len(line) else None
        if wait_s is None and queued >= max_queued:
            wait_s = line.promise(who, queued, seconds)
        told += tries > 0
        kept += tries > 0 and wait_s is None
        if wait_s is None:
            queued += 1
        elif wait_s <= MAX_WAIT_S and tries < 3:
            heapq.heappush(events, (clock.now + (int(wait_s) + 1 if patient else 1.0), 10_000 + tie, who, tries + 1))
    assert told > 150
    assert (kept / told >= 0.9) is patient, f"{kept} of {told}"
