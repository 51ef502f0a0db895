from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.bus import Bus, Event
from service.jobs.bus_local import LocalTransport

Spawn = Callable[[str], "subprocess.Popen[str]"]
Join = Callable[[], LocalTransport]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Join the bus of this test."""
    joined: list[LocalTransport] = []

    def make() -> LocalTransport:
        joined.append(LocalTransport(tmp_path / "bus"))
        return joined[-1]

    yield make
    for transport in joined:
        transport.close()


def sockets(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "bus"))


def test_the_socket_of_a_killed_process_is_removed(join: Join, tmp_path: Path, spawn: Spawn) -> None:
    mine = join()
    child = spawn(f"""
import time
from service.jobs.bus_local import LocalTransport
transport = LocalTransport({str(tmp_path / "bus")!r})
transport.send(b"here")
time.sleep(60)
""")
    assert mine.receive(30.0) == [b"here"]
    mine.send(b"hello")
    assert len(sockets(tmp_path)) == 2
    child.kill()
    child.wait(10)
    assert len(sockets(tmp_path)) == 2, "a killed process leaves its socket"
    mine.send(b"hello")
    assert len(sockets(tmp_path)) == 1, "and the next to send removes it"


def test_a_full_peer_is_skipped_and_holds_up_nobody(join: Join) -> None:
    sender, asleep, awake = join(), join(), join()
    started = time.monotonic()
    got = 0
    for number in range(1000):
        sender.send(b"%d" % number)
        got += len(awake.receive(0))
    assert time.monotonic() - started < 5
    assert got == 1000
    kept = asleep.receive(0)
    assert 0 < len(kept) < 1000
    assert [int(data) for data in kept] == list(range(len(kept))), "the oldest are kept, in order"
    sender.send(b"more")
    assert asleep.receive(0) == [b"more"], "and once it has read, it hears again"


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
        b'{"type": "finished", "job": "' + b"j" * 100_000 + b'"}',
    ],
)
def test_malformed_datagrams_are_ignored(join: Join, tmp_path: Path, data: bytes) -> None:
    other, mine = join(), Bus(tmp_path / "bus")
    (name,) = set(sockets(tmp_path)) - {other._name}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(data, f"{other._prefix}/{name}")
        newer = json.dumps({"type": "submitted", "from": "a newer version"}).encode()
        stranger.sendto(newer, f"{other._prefix}/{name}")
    other.send(b'{"type":"finished","job":"j"}')
    assert mine.receive(1.0) == [Event("submitted"), Event("finished", job="j")]
    mine.close()


def test_other_files_in_the_folder_are_left_alone(join: Join, tmp_path: Path) -> None:
    mine = join()
    for name in ("notes.txt", ".hidden.sock", "file.sock"):
        (tmp_path / "bus" / name).write_bytes(b"")
    mine.send(b"hello")
    # A socket that is being made has a hidden name; one that refuses is dead, and so is a plain file in its place.
    assert {"notes.txt", ".hidden.sock"} <= set(sockets(tmp_path))


def test_a_long_folder_and_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("near"), Path("/".join(["a" * 50] * 5))):
        one, two = LocalTransport(folder), LocalTransport(tmp_path / folder)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            one.send(b"one")
            two.send(b"two")
            assert (one.receive(1.0), two.receive(1.0)) == ([b"two"], [b"one"])
        one.close()
        two.close()
        assert os.listdir(folder) == []


def test_a_long_folder_without_proc_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as other, pytest.raises(ValueError, match="shorter data folder"):
        other.setattr(os.path, "isdir", lambda _: False)
        LocalTransport(tmp_path / ("a" * 120))
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_leaves_nothing(join: Join, tmp_path: Path) -> None:
    one, two = join(), join()
    two.close()
    assert len(sockets(tmp_path)) == 1
    one.send(b"nobody hears")
