"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from service.jobs.sqlite import SQLiteStore
from service.jobs.store import JobStore

_REDIS = ("redis", "rediss", "unix")


def open_store(url: str, max_queued: int = 10_000) -> JobStore:
    """Open a job store.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with ``?synchronous=FULL`` for calls that outlive
            a power cut; or ``redis://host:6379/0``, ``rediss://`` (TLS), ``unix:///redis.sock``.
        max_queued: jobs that may wait.

    Raises:
        ValueError: it is none of these, or the redis extra is not installed.
        RuntimeError: what is there cannot be used by this version.
        Unavailable: the server does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme in _REDIS:
        try:
            from service.jobs.redis import RedisStore  # an extra of the installation
        except ImportError as error:
            raise ValueError(f"store {parts.scheme}:// needs the redis extra: pip install 'darkroom[redis]'") from error
        return RedisStore(url, max_queued)
    if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2:
        raise ValueError(f"store is {url!r}; it must be sqlite:///path or redis://host:port/number")
    options = parse_qs(parts.query, keep_blank_values=True)
    synchronous = options.pop("synchronous", ["NORMAL"])[-1]
    if options:
        raise ValueError(f"store {url!r} has unknown options {sorted(options)}; known is synchronous")
    if synchronous not in ("NORMAL", "FULL"):
        raise ValueError(f"store {url!r}: synchronous is NORMAL or FULL, not {synchronous!r}")
    return SQLiteStore(
        Path(unquote(parts.path[1:])), max_queued, synchronous="FULL" if synchronous == "FULL" else "NORMAL"
    )
