"""Keeps one worker process alive: a native crash or the kernel's out-of-memory killer takes the worker, not the API."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

HANG_CHECK_S = 1.0
_STDIN = 0


@dataclass(frozen=True)
class Backoff:
    """Pauses before a restart: doubling from ``first_s`` to ``limit_s``, anew after ``reset_after_s`` of life."""

    first_s: float = 0.1
    limit_s: float = 10.0
    reset_after_s: float = 60.0


async def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_start: Callable[[int], None],
    on_exit: Callable[[int], Awaitable[None]],
    backoff: Backoff = Backoff(),  # noqa: B008 (frozen)
    grace_s: float = 10.0,
    hangs: Callable[[int], bool] = lambda _: False,
) -> None:
    """Run ``command`` again and again until cancelled; then end it with SIGTERM, after ``grace_s`` with SIGKILL.

    A child that hangs is killed too: it may be stopped, or stuck where no signal but SIGKILL reaches it.

    Args:
        command: the child. It must call :func:`exit_with_parent`, or it outlives a parent that was killed.
        environment: the whole environment of the child.
        on_start: called with the process id of each new child.
        on_exit: awaited with the process id of each child that ended, before the next one starts.
        backoff: pauses between a death and the next start.
        grace_s: time for the child to finish after SIGTERM.
        hangs: whether the child of this process id has fallen silent; asked about once a second.
    """
    pause_s = backoff.first_s
    while True:
        started = time.monotonic()
        await _run_once(command, environment, on_start, on_exit, grace_s, hangs)
        if time.monotonic() - started >= backoff.reset_after_s:
            pause_s = backoff.first_s
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, backoff.limit_s)


async def _run_once(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_start: Callable[[int], None],
    on_exit: Callable[[int], Awaitable[None]],
    grace_s: float,
    hangs: Callable[[int], bool],
) -> None:
    try:
        # The child never reads from the pipe: it closes when this process dies, however it dies.
        # A session of its own: Ctrl-C in a terminal must reach this process only, which then ends the child in order.
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
    except OSError:
        logger.exception("worker could not be started")
        return
    logger.info("worker started", extra={"pid": process.pid})
    on_start(process.pid)
    try:
        code = await _end_of(process, hangs)
        logger.error("worker died", extra={"pid": process.pid, "exit_code": code})
    finally:
        if process.returncode is None:
            await _stop(process, grace_s)
        try:
            await on_exit(process.pid)
        except Exception:  # The next worker must start whatever the bookkeeping of the last one met.
            logger.exception("clean-up after a worker failed", extra={"pid": process.pid})


async def _end_of(process: asyncio.subprocess.Process, hangs: Callable[[int], bool]) -> int:
    """The exit code, once the child has ended by itself or was killed because it hangs."""
    ended = asyncio.ensure_future(process.wait())
    try:
        while not ended.done():
            await asyncio.wait({ended}, timeout=HANG_CHECK_S)
            if not ended.done() and hangs(process.pid):
                logger.error("worker hangs and is killed", extra={"pid": process.pid})
                process.kill()
                await ended
        return ended.result()
    finally:
        ended.cancel()


async def _stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace_s)
    except TimeoutError:
        logger.warning("worker did not end in time and is killed", extra={"pid": process.pid, "grace_s": grace_s})
        process.kill()
        await process.wait()


def exit_with_parent(grace_s: float = 10.0) -> None:
    """Make this process end when its parent does: with SIGTERM, and for sure after ``grace_s``.

    The sign is the end of standard input, a pipe that the supervisor holds open. Unlike Linux' parent-death signal
    it works everywhere and follows the process rather than the thread that forked.
    """

    def watch() -> None:
        # os.read and not sys.stdin: a buffered read in a daemon thread holds a lock that interpreter exit needs.
        while os.read(_STDIN, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
