"""The condition of a network without a context."""

from __future__ import annotations

import torch

from models.conditioners.nothing import NoConditioner


def test_it_has_the_shape_of_the_call_and_no_numbers() -> None:
    positive, negative = NoConditioner().encode_pair("a red cat", "a dog", 64, 32)
    for condition in (positive, negative):
        assert [tuple(condition.context.shape), tuple(condition.vector.shape)] == [(1, 0), (0,)]
        assert condition.concat is None and condition.context.dtype == torch.float32
    assert NoConditioner().networks == ()
