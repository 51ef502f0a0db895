"""The bus over each transport: one machine's folder, and a Redis server."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from service.jobs.bus import PROGRESS_EVERY_S, Bus, Event
from tests.service.jobs.conftest import server

Spawn = Callable[[str], "subprocess.Popen[str]"]
Join = Callable[[], Bus]
HELLO = Event("submitted", "are you there?")


@pytest.fixture(params=["folder", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the members of this test's bus meet."""
    return str(tmp_path / "bus") if request.param == "folder" else server("everysec").url


@pytest.fixture
def join(address: str) -> Iterator[Join]:
    """Join the bus of this test; whoever has joined hears all the others."""
    joined: list[Bus] = []

    def make() -> Bus:
        bus = Bus(address)
        for other in joined:  # the subscription to a server begins in the background
            assert hear(bus, partial(other.publish, HELLO)) and hear(other, partial(bus.publish, HELLO))
        joined.append(bus)
        for one in joined:  # the last greetings are still on their way
            while one.receive(0.1):
                pass
        return bus

    yield make
    for bus in joined:
        bus.close()


def hear(bus: Bus, tell: Callable[[], None] = lambda: None) -> list[Event]:
    """What arrives within ten seconds while ``tell`` is repeated."""
    for _ in range(100):
        tell()
        if events := bus.receive(0.1):
            return events
    return []


def hear_all(bus: Bus, number: int) -> list[Event]:
    """What arrives within ten seconds, until it is as many."""
    events: list[Event] = []
    deadline = time.monotonic() + 10
    while len(events) < number and time.monotonic() < deadline:
        events += bus.receive(0.1)
    return events


def test_every_other_process_gets_every_event(join: Join) -> None:
    one, two, three = join(), join(), join()
    events = [
        Event("submitted"),
        Event("cancelled", job="j – é"),
        Event("progress", job="j", step=0, steps=30),
        Event("preview", job="j", step=1, steps=30, index=0, part=2, preview="ab" * 32),
        Event("finished", job="j"),
    ]
    for event in events:
        one.publish(event)
    assert hear_all(two, 5) == events == hear_all(three, 5)
    assert one.receive(0.05) == [], "not to itself"


def test_receive_waits_no_longer_than_told(join: Join) -> None:
    bus = join()
    started = time.monotonic()
    assert bus.receive(0) == bus.receive(-1) == []
    assert time.monotonic() - started < 0.5
    assert bus.receive(0.2) == []
    assert 0.2 <= time.monotonic() - started < 2


def test_another_process_joins(join: Join, address: str, spawn: Spawn) -> None:
    mine = join()
    child = spawn(f"""
from service.jobs.bus import Bus, Event
bus = Bus({address!r})
while not (events := bus.receive(0.1)):
    bus.publish(Event("submitted"))
print(events[0])
bus.close()
""")
    assert set(hear(mine)) == {Event("submitted")}
    assert child.stdout is not None
    mine.publish(Event("finished", job="j"))
    assert child.stdout.readline() == f"{Event('finished', job='j')}\n"


def test_an_event_that_is_too_long_is_refused(join: Join) -> None:
    with pytest.raises(ValueError, match="32768"):
        join().publish(Event("preview", job="j", preview="A" * 40_000))


def test_reports_are_limited_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    worker, unlimited, api = Bus(tmp_path, PROGRESS_EVERY_S), Bus(tmp_path), Bus(tmp_path)
    heard = []
    for step in range(81):  # ten seconds
        for event in (Event("progress", "a", step), Event("progress", "b", step)):
            worker.publish(event)
        if step < 5:
            worker.publish(Event("cancelled", "a"))
            worker.publish(Event("preview", "a", step, index=0, part=step, preview="ab" * 32))
            unlimited.publish(Event("progress", "c", step))
        heard += api.receive(0)
        now += 0.125
    counts = {(e.type, e.job): sum((e.type, e.job) == (o.type, o.job) for o in heard) for e in heard}
    reports = dict.fromkeys([("progress", "a"), ("progress", "b")], 21)
    others = dict.fromkeys([("cancelled", "a"), ("preview", "a"), ("progress", "c")], 5)
    assert counts == reports | others, "at the start and then twice a second"
    for bus in (worker, unlimited, api):
        bus.close()


def test_the_memory_of_reports_is_bounded(tmp_path: Path) -> None:
    bus = Bus(tmp_path, 60.0)
    for number in range(1500):
        bus.publish(Event("progress", job=str(number)))
    assert len(bus._reported) == 1024
    bus.close()


def test_asyncio_can_wait_for_it(join: Join) -> None:
    mine, other = join(), join()

    async def wait() -> list[Event]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[list[Event]] = loop.create_future()
        loop.add_reader(mine.fileno(), lambda: arrived.set_result(mine.receive(0)))
        other.publish(Event("cancelled", job="j"))
        found = await asyncio.wait_for(arrived, 10)
        loop.remove_reader(mine.fileno())
        return found

    assert asyncio.run(wait()) == [Event("cancelled", job="j")]


def test_closing_twice_is_fine(join: Join) -> None:
    bus = join()
    bus.close()
    bus.close()
