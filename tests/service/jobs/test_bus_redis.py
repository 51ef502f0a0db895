"""What only the transport over a server promises: it outlives the server, and nobody waits for it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs.bus_redis import RedisTransport
from tests.service.jobs.redis_server import RedisServer


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    found = RedisServer(Path(tempfile.mkdtemp(prefix="redis-")), "none")
    yield found
    found.remove()


def talk(one: RedisTransport, other: RedisTransport) -> bool:
    """Whether they hear each other within ten seconds."""
    heard = set()
    for _ in range(100):
        one.send(b"from one")
        other.send(b"from other")
        heard |= {*one.receive(0.05), *other.receive(0.05)}
        if heard == {b"from one", b"from other"}:
            return True
    return False


def test_the_server_goes_and_comes_back(own_server: RedisServer) -> None:
    one, other = RedisTransport(own_server.url), RedisTransport(own_server.url)
    assert talk(one, other)
    watched = one.fileno()
    own_server.kill()
    one.receive(0.1)
    started = time.monotonic()
    for _ in range(5000):
        other.send(b"lost")
    assert one.receive(0) == []
    assert time.monotonic() - started < 0.5, "nobody waits for a server that is away"
    own_server.start()
    assert talk(one, other)
    assert one.fileno() == watched, "an event loop that watches it need not know"
    one.close()
    other.close()


def test_what_is_not_read_makes_room(own_server: RedisServer) -> None:
    sender, asleep = RedisTransport(own_server.url), RedisTransport(own_server.url)
    assert talk(sender, asleep)
    for number in range(3000):
        sender.send(b"%d" % number)
        if number % 100 == 0:
            time.sleep(0.01)  # what is not sent makes room, too
    deadline = time.monotonic() + 10
    kept: list[bytes] = []
    while b"2999" not in kept and time.monotonic() < deadline:
        time.sleep(0.1)
        kept = list(asleep._received)
    assert kept == asleep.receive(1.0) and len(kept) <= 1000
    assert kept[-1] == b"2999", "the newest are kept"
    sender.close()
    asleep.close()


def test_namespaces_do_not_hear_each_other(own_server: RedisServer) -> None:
    one, other, stranger = (RedisTransport(own_server.url, name) for name in ("a", "a", "b"))
    assert talk(one, other)
    assert stranger.receive(0.2) == []
    for transport in (one, other, stranger):
        transport.close()


def test_closing_sends_what_was_published(own_server: RedisServer) -> None:
    one, other = RedisTransport(own_server.url), RedisTransport(own_server.url)
    assert talk(one, other)
    other.receive(0.2)
    one.send(b"last words")
    one.close()
    assert other.receive(5.0) == [b"last words"]
    other.close()
