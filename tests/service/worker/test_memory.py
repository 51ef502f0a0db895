"""What leaves memory for what: bounds for every mix, and the order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker.memory import TENURE, Home, Memory


def here(size: int, used_at: float = 1.0) -> Home:
    return Home(size, load_s=1.0, since=0.0, used_at=used_at, switch_s=1.0)


def on_disk(size: int) -> Home:
    return Home(size, load_s=1.0)


def test_what_is_held_and_what_is_missing() -> None:
    memory = Memory({"a": here(3), "b": on_disk(4), "c": on_disk(5)})
    assert memory.holds(["a"]) and memory.holds([]) and not memory.holds(["a", "b"])
    assert memory.missing(["a", "b"]) == {"b"} and memory.load_s(["a", "b", "c"]) == 2.0
    assert memory.bytes(["a", "b"]) == 7 and memory.fit(["a", "b", "c"])
    assert not replace(memory, limit_bytes=11).fit(["a", "b", "c"]) and replace(memory, limit_bytes=12).fit("abc")
    with pytest.raises(KeyError):
        memory.holds(["d"])


def test_tenure_lasts_a_multiple_of_the_whole_load() -> None:
    home = replace(here(1), since=10.0, used_at=9.0, load_s=0.5, switch_s=2.0)
    assert not home.used and replace(home, used_at=10.1).used and not on_disk(1).used
    assert not home.settled(10.0 + TENURE * 2.0 - 0.01) and home.settled(10.0 + TENURE * 2.0)
    assert not on_disk(1).settled(1e9)


def test_without_a_limit_nothing_leaves() -> None:
    assert Memory({"a": here(3), "b": on_disk(4)}).displaced(["b"], []) == ()


def test_the_longest_unused_leaves_first_and_what_has_work_last() -> None:
    networks = {"old": here(2, 1.0), "new": here(2, 2.0), "b": on_disk(2), "large": on_disk(4)}
    memory = Memory(networks, limit_bytes=4)
    assert memory.displaced(["b"], busy=[]) == ("old",)
    assert memory.displaced(["b"], busy=["old"]) == ("new",)
    assert memory.displaced(["b", "old"], busy=["new"]) == ("new",), "what is wanted itself stays"
    assert memory.displaced(["large"], busy=[]) == ("old", "new")


def test_a_small_one_stays_where_a_large_one_has_to_leave_anyway() -> None:
    memory = Memory({"small": here(1, 1.0), "large": here(4, 2.0), "b": on_disk(4)}, limit_bytes=5)
    assert memory.displaced(["b"], busy=[]) == ("large",)


def test_what_is_being_loaded_takes_room_and_cannot_leave() -> None:
    networks = {"a": here(2), "b": on_disk(2), "coming": on_disk(2)}
    memory = Memory(networks, limit_bytes=4, loading=frozenset({"coming"}))
    assert memory.displaced(["b"], busy=[]) == ("a",)
    assert memory.displaced(["a", "b"], busy=[]) is None
    assert memory.displaced(["a", "coming"], busy=[]) == (), "it has its room already"


HOMES = st.builds(Home, st.integers(1, 9), st.just(1.0), st.none() | st.just(0.0), st.floats(0, 9), st.just(1.0))
NETWORKS = st.dictionaries(st.sampled_from("abcdefgh"), HOMES, min_size=1)


@given(NETWORKS, st.integers(1, 40), st.data())
def test_room_is_made_and_no_more_than_that(networks: dict[str, Home], limit: int, data: st.DataObject) -> None:
    memory = Memory(networks, limit_bytes=limit)
    some = st.sets(st.sampled_from(sorted(networks)))
    coming, busy = data.draw(some), data.draw(some)
    here = {name for name, home in networks.items() if home.since is not None}
    leaving = memory.displaced(coming, busy)
    if leaving is None:
        assert memory.bytes(coming) > limit
        return
    assert set(leaving) <= here - coming
    assert not leaving or memory.bytes((here - set(leaving)) | coming) <= limit
    for spared in leaving:
        assert memory.bytes((here - set(leaving)) | coming | {spared}) > limit
