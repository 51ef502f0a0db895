"""The bus of one machine: each process has one Unix datagram socket in a common folder.

Sending goes to every other socket there. Nobody waits for anybody: a full socket misses the event, a dead one is
removed.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
from pathlib import Path

_MAX_ADDRESS_BYTES = 103  # of a socket's path: macOS has 104 with the closing zero, Linux 108
_MAX_BYTES = 64 * 1024
_MAX_DRAIN = 1000  # events of one receive, so that a storm of senders cannot hold the receiver for ever


class LocalTransport:
    """This process's socket in ``folder`` (created when missing).

    Linux holds few unread events a socket (``net.unix.max_dgram_qlen``, often 10).

    Raises:
        ValueError: the folder's path is too long for a socket, and there is no /proc to shorten it.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(os.path.abspath(folder))
        folder.mkdir(parents=True, exist_ok=True)
        self._name = f"{os.getpid()}-{secrets.token_hex(6)}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._socket.setblocking(False)
            self._prefix = _prefix(folder, self._folder_fd, len(self._name) + 1)
            # A socket's file exists a moment before the socket answers. A sender that hit that moment would take it
            # for dead and remove it, so it is made under a name that senders skip.
            self._socket.bind(f"{self._prefix}/.{self._name}")
            os.rename(f".{self._name}", self._name, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        except BaseException:
            self._socket.close()
            os.close(self._folder_fd)
            raise

    def send(self, data: bytes) -> None:
        """Send to every other socket in the folder."""
        names = os.listdir(self._folder_fd)
        # Unread datagrams count against the socket they were sent from, so one that sends everything would be blocked
        # for all peers by one that sleeps: each event has a socket of its own.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for name in names:
                if _is_peer(name) and name != self._name:
                    self._send(sender, name, data)

    def receive(self, timeout_s: float) -> list[bytes]:
        """Everything that is there, after waiting up to ``timeout_s`` for the first."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.poll(timeout_s * 1000)  # milliseconds
        received: list[bytes] = []
        for _ in range(_MAX_DRAIN):
            try:
                received.append(self._socket.recv(_MAX_BYTES))
            except BlockingIOError:
                break
        return received

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Remove the socket; closing twice is fine."""
        if self._folder_fd < 0:
            return
        self._remove(self._name)
        self._socket.close()
        os.close(self._folder_fd)
        self._folder_fd = -1

    def _send(self, sender: socket.socket, name: str, data: bytes) -> None:
        try:
            sender.sendto(data, f"{self._prefix}/{name}")
        except OSError as error:
            # Full (EAGAIN), gone since the listing (ENOENT), another user's (EACCES): the event is lost on that peer.
            if error.errno == errno.ECONNREFUSED:  # nobody has it open, and no name is ever used twice
                self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder_fd)
        except FileNotFoundError:
            return  # another sender was faster


def _is_peer(name: str) -> bool:
    return name.endswith(".sock") and not name.startswith(".")


def _prefix(folder: Path, folder_fd: int, name_bytes: int) -> str:
    """A path to the folder that is short enough for a socket's address."""
    room = _MAX_ADDRESS_BYTES - 1 - max(name_bytes, 32)  # 32: room for a peer whose process id has more digits
    if len(os.fsencode(folder)) <= room:
        return str(folder)
    through_fd = f"/proc/self/fd/{folder_fd}"
    if os.path.isdir(through_fd):
        return through_fd
    raise ValueError(f"{folder} is too long for a socket's path: at most {room} bytes, choose a shorter data folder")
