"""The bus of several machines: Redis pub/sub, which keeps nothing for those who do not listen."""

from __future__ import annotations

import os
import secrets
import select
import threading
from collections import deque
from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.retry import Retry

from service.jobs.redis_keys import channel

_KEPT = 1000  # unread events, and unsent ones; older ones make room
_RETRY_S = 1.0
_POLL_S = 0.2  # how long closing may take


class RedisTransport:
    """This process's subscription, with a thread that listens and one that sends.

    Neither sending nor receiving ever waits for the server, for a worker does both between two steps: while it is away
    events are lost, and when it is back the threads connect again. What piles up while one batch of events is under way
    is sent together with the next.

    Args:
        url: as redis-py reads it; a server that is away is waited for in the background.
        namespace: who has the same shares the bus.
    """

    def __init__(self, url: str, namespace: str = "darkroom") -> None:
        self._channel = channel(namespace)
        self._client = redis.Redis.from_url(
            url, socket_connect_timeout=_RETRY_S, socket_timeout=_RETRY_S * 5, retry=Retry(NoBackoff(), 0)
        )
        self._mark = secrets.token_hex(8).encode()  # the server sends our own events too
        self._received: deque[bytes] = deque(maxlen=_KEPT)
        self._unsent: deque[bytes] = deque(maxlen=_KEPT)
        self._readable, self._wake = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._wake, False)
        self._something_unsent, self._closing = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"bus-{run.__name__.strip('_')}", daemon=True)
            for run in (self._listen, self._deliver)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Leave it to the sending thread."""
        self._unsent.append(self._mark + data)
        self._something_unsent.set()

    def receive(self, timeout_s: float) -> list[bytes]:
        """Everything that has arrived, after waiting up to ``timeout_s`` for the first."""
        poller = select.poll()
        poller.register(self._readable, select.POLLIN)
        poller.poll(timeout_s * 1000)  # milliseconds
        with suppress(BlockingIOError):  # first the signal, then the events: one more empty look does no harm
            os.read(self._readable, 2 * _KEPT)
        return [self._received.popleft() for _ in range(len(self._received))]

    def fileno(self) -> int:
        """A pipe, which unlike the connection stays the same when the server goes and comes back."""
        return self._readable

    def close(self) -> None:
        """End the threads, after what has been published is sent; closing twice is fine."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._something_unsent.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        os.close(self._readable)
        os.close(self._wake)

    def _listen(self) -> None:
        while not self._closing.is_set():
            with (
                suppress(redis.RedisError),
                PubSub(self._client.connection_pool, ignore_subscribe_messages=True) as subscription,
            ):
                subscription.subscribe(self._channel)
                while not self._closing.is_set():
                    message = subscription.get_message(timeout=_POLL_S)
                    if message is not None and not message["data"].startswith(self._mark):
                        self._received.append(message["data"][len(self._mark) :])
                        with suppress(BlockingIOError):
                            os.write(self._wake, b"x")
            self._closing.wait(_RETRY_S)

    def _deliver(self) -> None:
        while not self._closing.is_set() or self._unsent:
            self._something_unsent.wait()
            self._something_unsent.clear()
            batch = [self._unsent.popleft() for _ in range(len(self._unsent))]
            with suppress(redis.RedisError):
                pipeline = self._client.pipeline(transaction=False)
                for data in batch:
                    pipeline.publish(self._channel, data)
                pipeline.execute()
