from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import QueueFull, Unavailable
from service.jobs.open import open_store
from service.jobs.redis import RedisStore
from service.jobs.sqlite import SQLiteStore
from tests.service.jobs.conftest import server


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("sqlite:///near.db", tmp_path / "near.db"),
        (f"sqlite:///{tmp_path}/far%20away.db?synchronous=FULL", tmp_path / "far away.db"),
    ):
        store = open_store(url)
        assert isinstance(store, SQLiteStore) and path.exists()
        assert store._reader.execute("PRAGMA synchronous").fetchone() == (2 if "FULL" in url else 1,)
        store.close()


def test_servers() -> None:
    store = open_store(server("everysec").url)
    assert isinstance(store, RedisStore)
    store.close()
    with pytest.raises(Unavailable, match="reached"):
        open_store("redis://127.0.0.1:1/0")


def test_the_limit_of_the_queue_is_passed_on(tmp_path: Path, picture: object) -> None:
    store = open_store(f"sqlite:///{tmp_path}/jobs.db", max_queued=1)
    store.submit(picture())  # type: ignore[operator]
    with pytest.raises(QueueFull):
        store.submit(picture())  # type: ignore[operator]
    store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must be sqlite"),
        ("jobs.db", "must be sqlite"),
        ("sqlite://", "must be sqlite"),
        ("sqlite:///", "must be sqlite"),
        ("sqlite://host/jobs.db", "must be sqlite"),
        ("postgresql://host/jobs", "must be sqlite"),
        ("sqlite:///jobs.db?mode=ro", "mode"),
        ("sqlite:///jobs.db?synchronous=OFF", "NORMAL or FULL"),
    ],
)
def test_other_urls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        open_store(url)
    assert list(tmp_path.iterdir()) == []
