from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.bus import Bus, Event

Spawn = Callable[[str], "subprocess.Popen[str]"]
Join = Callable[[], Bus]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Join the bus of this test."""
    joined: list[Bus] = []

    def make() -> Bus:
        joined.append(Bus(tmp_path / "bus"))
        return joined[-1]

    yield make
    for bus in joined:
        bus.close()


def sockets(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "bus"))


def test_every_other_process_gets_every_event(join: Join) -> None:
    one, two, three = join(), join(), join()
    events = [
        Event("submitted"),
        Event("cancelled", job="j – é"),
        Event("progress", job="j", step=0, steps=30),
        Event("finished", job="j"),
    ]
    assert [one.publish(event) for event in events] == [2, 2, 2, 2]
    assert two.receive(1.0) == events == three.receive(1.0)
    assert one.receive(0) == [], "not to itself"


def test_receive_waits_no_longer_than_told(join: Join) -> None:
    bus = join()
    started = time.monotonic()
    assert bus.receive(0) == bus.receive(-1) == []
    assert time.monotonic() - started < 0.5
    assert bus.receive(0.2) == []
    assert 0.2 <= time.monotonic() - started < 2


def test_another_process_joins_and_dies(join: Join, tmp_path: Path, spawn: Spawn) -> None:
    mine = join()
    child = spawn(f"""
import time
from service.jobs.bus import Bus, Event
bus = Bus({str(tmp_path / "bus")!r})
bus.publish(Event("submitted"))
print(bus.receive(30.0))
time.sleep(60)
""")
    assert mine.receive(30.0) == [Event("submitted")]
    assert mine.publish(Event("finished", job="j")) == 1
    assert child.stdout is not None
    assert child.stdout.readline() == f"{[Event('finished', job='j')]}\n"
    child.kill()
    child.wait(10)
    assert len(sockets(tmp_path)) == 2, "a killed process leaves its socket"
    assert mine.publish(Event("submitted")) == 0
    assert len(sockets(tmp_path)) == 1, "and the next to send removes it"


def test_a_full_peer_is_skipped_and_holds_up_nobody(join: Join) -> None:
    sender, asleep, awake = join(), join(), join()
    started = time.monotonic()
    got = 0
    for step in range(1000):
        sender.publish(Event("progress", job="j", step=step, steps=1000))
        got += len(awake.receive(0))
    assert time.monotonic() - started < 5
    assert got == 1000
    kept = asleep.receive(0)
    assert 0 < len(kept) < 1000
    assert [event.step for event in kept] == list(range(len(kept))), "the oldest are kept, in order"
    assert sender.publish(Event("submitted")) == 2, "and once it has read, it hears again"
    assert asleep.receive(0) == [Event("submitted")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 4000,
        b'{"job": "j"}',
        b'{"type": "unheard-of"}',
        b'{"type": 1}',
        b'{"type": "finished", "job": 5}',
        b'{"type": "progress", "job": "j", "step": "1"}',
        b'{"type": "finished", "job": "' + b"j" * 10_000 + b'"}',
    ],
)
def test_malformed_datagrams_are_ignored(join: Join, tmp_path: Path, data: bytes) -> None:
    mine, other = join(), join()
    name = next(name for name in sockets(tmp_path) if name == mine._name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(data, f"{mine._prefix}/{name}")
        stranger.sendto(json.dumps({"type": "submitted", "from": "a newer version"}).encode(), f"{mine._prefix}/{name}")
    other.publish(Event("finished", job="j"))
    assert mine.receive(1.0) == [Event("submitted"), Event("finished", job="j")]


def test_an_event_that_is_too_long_is_refused(join: Join) -> None:
    with pytest.raises(ValueError, match="4096"):
        join().publish(Event("finished", job="j" * 5000))


def test_other_files_in_the_folder_are_left_alone(join: Join, tmp_path: Path) -> None:
    mine = join()
    for name in ("notes.txt", ".hidden.sock", "file.sock"):
        (tmp_path / "bus" / name).write_bytes(b"")
    assert mine.publish(Event("submitted")) == 0
    # A socket that is being made has a hidden name; one that refuses is dead, and so is a plain file in its place.
    assert {"notes.txt", ".hidden.sock"} <= set(sockets(tmp_path))


def test_a_long_folder_and_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("near"), Path("/".join(["a" * 50] * 5))):
        one, two = Bus(folder), Bus(tmp_path / folder)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            assert one.publish(Event("submitted")) == two.publish(Event("submitted")) == 1
            assert one.receive(1.0) == two.receive(1.0) == [Event("submitted")]
        one.close()
        two.close()
        assert os.listdir(folder) == []


def test_a_long_folder_without_proc_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as other, pytest.raises(ValueError, match="shorter data folder"):
        other.setattr(os.path, "isdir", lambda _: False)
        Bus(tmp_path / ("a" * 120))
    assert len(os.listdir("/proc/self/fd")) == before


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


def test_close_leaves_nothing_and_may_come_twice(join: Join, tmp_path: Path) -> None:
    one, two = join(), join()
    two.close()
    two.close()
    assert len(sockets(tmp_path)) == 1
    assert one.publish(Event("submitted")) == 0
