"""Names, shapes and types of a network's call."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.signature import FILE, Axis, Signature, port

CALL = Signature(
    inputs=(
        port("x", ("batch", 4, "2*height", "2*width")),
        port("ids", ("batch", "tokens"), "int64", "whole", 49408.0),
        port("vector", ("batch", 0)),
    ),
    outputs=(port("output", ("batch", 4, "2*height", "2*width")),),
    largest={"height": 8},
)
SHAPES = [(3, 4, 6, 10), (3, 7), (3, 0)]


@given(st.integers(0, 10**6), st.one_of(st.just(""), st.from_regex(r"[A-Za-z_]\w*", fullmatch=True)))
def test_an_axis_is_what_it_is_written_as(factor: int, symbol: str) -> None:
    assert Axis.parse(str(Axis(factor, symbol))) == Axis(factor, symbol)


@pytest.mark.parametrize("text", ["", "2*", "*height", "2*3", "a-b", "-1", "height/2"])
def test_other_forms_of_axes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number, nor a name"):
        Axis.parse(text)


def test_shapes_and_sizes_are_each_others_inverse() -> None:
    sizes = CALL.match(SHAPES)
    assert sizes == {"batch": 3, "height": 3, "width": 5, "tokens": 7}
    assert [port.shape(sizes) for port in CALL.inputs] == SHAPES
    assert CALL.symbols == ("batch", "height", "width", "tokens")


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (3, 4, 6), r"x has shape \(3, 4, 6\), expected \(batch, 4, 2\*height, 2\*width\)"),
        (0, (3, 5, 6, 10), "x has shape"),
        (0, (3, 4, 7, 10), "x has shape"),
        (0, (3, 4, 0, 10), "x has shape"),
        (0, (0, 4, 6, 10), "x has shape"),
        (0, (3, 4, 18, 10), "height at most 8"),
        (1, (2, 7), r"ids has shape \(2, 7\), expected \(batch, tokens\) with .*'batch': 3"),
        (1, (3, 0), "ids has shape"),
        (2, (3, 1), "vector has shape"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(index: int, shape: tuple[int, ...], message: str) -> None:
    shapes = [*SHAPES]
    shapes[index] = shape
    with pytest.raises(ValueError, match=message):
        CALL.match(shapes)


def test_inputs_without_elements_are_not_in_the_graph() -> None:
    assert [port.name for port in CALL.graph_inputs] == ["x", "ids"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    CALL.write(tmp_path)
    assert Signature.read(tmp_path) == CALL


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"inputs": [{"name": 1}], "outputs": [], "largest": {}}'])
def test_what_is_no_signature_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match="is not a signature"):
        Signature.read(tmp_path)
