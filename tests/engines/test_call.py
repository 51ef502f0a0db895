"""What every session checks before it runs, and the examples that graphs are compared on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.call import bind, examples, graph_digest, outputs_of
from engines.signature import Signature, port

CALL = Signature(
    inputs=(
        port("x", ("batch", 2)),
        port("ids", ("batch", 5), "int64", "whole", 3.0),
        port("time", ("batch",), values="uniform", below=1000.0),
        port("vector", ("batch", 0)),
    ),
    outputs=(port("tokens", ("batch", 5)), port("pooled", ("batch", 2))),
)
CPU = torch.device("cpu")


def test_outputs_are_new_and_of_the_calls_size() -> None:
    inputs = examples(CALL, {"batch": 3})
    bound = bind(CALL, inputs, CPU)
    tokens, pooled = outputs_of(bound.result)
    assert tokens.shape == (3, 5) and pooled.shape == (3, 2) and tokens.dtype == pooled.dtype == torch.float32
    assert [port.name for port, _ in bound.inputs] == ["x", "ids", "time"]
    assert bound.inputs[0][1].data_ptr() == inputs[0].data_ptr()  # contiguous already


def test_strided_inputs_are_copied_in_their_logical_order() -> None:
    inputs = list(examples(CALL, {"batch": 2}))
    inputs[0] = inputs[0].T.contiguous().T
    copied = bind(CALL, inputs, CPU).inputs[0][1]
    assert copied.is_contiguous() and torch.equal(copied, inputs[0])


@pytest.mark.parametrize(
    ("index", "bad", "error", "message"),
    [
        (0, torch.zeros(2, 2, dtype=torch.float64), TypeError, "x is torch.float64, expected torch.float32"),
        (0, [1.0, 2.0], TypeError, "x is a list"),
        (1, torch.zeros(2, 5), TypeError, "ids is torch.float32, expected torch.int64"),
        (0, torch.zeros(2, 2, device="meta"), ValueError, "x is on meta, expected cpu"),
        (1, torch.zeros(3, 5, dtype=torch.int64), ValueError, "ids has shape"),
    ],
)
def test_wrong_inputs_are_named(index: int, bad: object, error: type[Exception], message: str) -> None:
    inputs: list[object] = [*examples(CALL, {"batch": 2})]
    inputs[index] = bad
    with pytest.raises(error, match=message):
        bind(CALL, inputs, CPU)  # type: ignore[arg-type]


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(TypeError, match=r"expected 4 tensors \(x, ids, time, vector\), got 1"):
        bind(CALL, [torch.zeros(1, 2)], CPU)


def test_examples_are_what_the_ports_say_and_leave_the_callers_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    x, ids, time, vector = examples(CALL, {"batch": 50})
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(set(ids.flatten().tolist())) == [0, 1, 2] and ids.dtype == torch.int64
    assert time.min() >= 0.0 and 900.0 < time.max() < 1000.0
    assert x.std() > 0.7 and vector.shape == (50, 0)
    assert torch.equal(examples(CALL, {"batch": 50})[0], x)
    assert not torch.equal(examples(CALL, {"batch": 50}, seed=1)[0], x)


def test_the_digest_covers_weights_beside_the_graph(tmp_path: Path) -> None:
    graph = tmp_path / "network.onnx"
    graph.write_bytes(b"graph")
    alone = graph_digest(graph)
    (tmp_path / "network.onnx.data").write_bytes(b"weights")
    (tmp_path / "other").write_bytes(b"not of the graph")
    with_weights = graph_digest(graph)
    (tmp_path / "network.onnx.data").write_bytes(b"Weights")
    assert len({alone, with_weights, graph_digest(graph)}) == 3
