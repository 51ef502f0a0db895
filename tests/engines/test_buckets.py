"""Which sizes an engine of fixed shapes is built for, and which calls fit."""

from __future__ import annotations

import pytest

from engines.buckets import Buckets, chosen
from engines.signature import Signature, port

SIGNATURE = Signature(
    inputs=(port("x", ("batch", 4, "2*height", "2*width")), port("context", ("batch", "tokens", 64))),
    outputs=(port("output", ("batch", 4, "2*height", "2*width")),),
)


def call(batch: int, height: int = 16, tokens: int = 20) -> list[tuple[int, ...]]:
    return [(batch, 4, height, 16), (batch, tokens, 64)]


def sizes(batch: int, height: int = 8, tokens: int = 20) -> dict[str, int]:
    return {"batch": batch, "height": height, "width": 8, "tokens": tokens}


def test_a_call_fits_with_fewer_lanes_and_nothing_else_changed() -> None:
    buckets = Buckets(SIGNATURE, (sizes(8), sizes(2)))
    assert buckets.lanes == 8
    assert buckets.takes((4, 16, 16), tokens=20, lanes=8) and not buckets.takes((4, 16, 16), tokens=20, lanes=9)
    assert buckets.takes((9, 16, 16), tokens=20), "channels behind the network's own do not matter"
    for lane, tokens in (((4, 16, 18), 20), ((4, 18, 16), 20), ((4, 16, 16), 21), ((3, 4, 16, 16), 20)):
        assert not buckets.takes(lane, tokens)
    assert [buckets.lanes_of(call(batch)) for batch in (1, 8, 9)] == [1, 8, 8]
    assert buckets.lanes_of(call(1, height=18)) == buckets.lanes_of(call(1, tokens=21)) == 0


def test_another_shape_needs_its_own_bucket_of_all_lanes() -> None:
    buckets = Buckets(SIGNATURE, (sizes(8), sizes(2, height=9)))
    assert buckets.takes((4, 18, 16), 20, lanes=2) and not buckets.takes((4, 18, 16), 20, lanes=8)


def test_the_most_frequent_shape_gets_both_numbers_of_lanes() -> None:
    calls = [call(2), call(2, height=18), call(4), call(16)]
    assert chosen(SIGNATURE, calls, (2, 8)) == (sizes(8), sizes(2))
    assert chosen(SIGNATURE, [call(1), call(1, tokens=40)], (8, 8)) == (sizes(8, tokens=40), sizes(8))
    assert chosen(SIGNATURE, calls, (1,)) == (sizes(1), sizes(1, height=9))
    assert chosen(SIGNATURE, calls[:1], (1,)) == (sizes(1),)


def test_nothing_is_chosen_without_calls() -> None:
    with pytest.raises(ValueError, match="there are none"):
        chosen(SIGNATURE, [], (1,))
    with pytest.raises(ValueError, match="x has shape"):
        chosen(SIGNATURE, [[(1, 4, 15, 16), (1, 20, 64)]], (1,))
