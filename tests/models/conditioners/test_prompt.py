"""Weights and chunks against the meaning that users know, written down here a second time."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.conditioners.prompt import (
    MAX_CHUNKS,
    MAX_WEIGHT,
    ChunkFormat,
    Span,
    parse_prompt,
    plain_text,
    split_into_chunks,
)

FORMAT = ChunkFormat(length=7, start=1000, end=1001, padding=1002)
ROOM = 5
SPECIAL = "()[]\\"
Tree = list  # of str, or of (opening, Tree, closing, factor)


def spans(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(span.text, round(span.weight, 9)) for span in part] for part in parse_prompt(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [[]]),
        ("normal text", [[("normal text", 1)]]),
        ("an (important) word", [[("an ", 1), ("important", 1.1), (" word", 1)]]),
        ("(unnecessary)(parens)", [[("unnecessaryparens", 1.1)]]),
        ("a [faint] word", [[("a ", 1), ("faint", round(1 / 1.1, 9)), (" word", 1)]]),
        ("(red:1.5) cat", [[("red", 1.5), (" cat", 1)]]),
        ("(red: .5 )", [[("red", 0.5)]]),
        ("(red:-1)", [[("red", -1)]]),
        ("(a (b:2) c:1.5)", [[("a ", 1.5), ("b", 3), (" c", 1.5)]]),
        ("((a))", [[("a", 1.21)]]),
        ("[(a)]", [[("a", 1)]]),
        ("(same:1.0) weight", [[("same weight", 1)]]),
        ("()[](:2)", [[]]),
    ],
)
def test_weights(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    assert spans(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "(unbalanced",
        "unbalanced]",
        ":(",
        "a:b",
        "x:1.2)",
        "[a:1.2",
        ")(",
        "1:2:3",
        "back\\slash",
        "\\",
        "(red:1.2",
        "::",
    ],
)
def test_a_bracket_without_its_partner_is_text(prompt: str) -> None:
    assert spans(prompt) == [[(prompt, 1)]]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a:1.2]", [("a:1.2", round(1 / 1.1, 9))]),  # only round brackets take a number
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("((a)", [("(", 1), ("a", 1.1)]),
        ("([a)]", [("[a", 1.1), ("]", 1)]),  # the outer pair closes first, so the others have no partner
        ("[(a](b", [("(a", round(1 / 1.1, 9)), ("(b", 1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        (r"(a\):2)", [("a)", 2)]),
    ],
)
def test_what_looks_like_a_weight(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert spans(prompt) == [expected]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("BREAK", [[], []]),
        ("a  BREAK", [[("a", 1)], []]),
        ("a BREAKER or break", [[("a BREAKER or break", 1)]]),
        ("(a BREAK b:2) c", [[("a", 2)], [("b", 2), (" c", 1)]]),
        ("(a)BREAK[b]", [[("a", 1.1)], [("b", round(1 / 1.1, 9))]]),
    ],
)
def test_break(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    assert spans(prompt) == expected


def test_weights_are_bounded() -> None:
    assert spans("(a:1000) (b:-1000)") == [[("a", MAX_WEIGHT), (" ", 1), ("b", -MAX_WEIGHT)]]
    assert spans(f"((a:0):{'9' * 400})") == [[("a", 0)]]
    assert spans("(" * 60 + "a" + ")" * 60) == [[("a", MAX_WEIGHT)]]


MARKS = ["BREAK", "(", "[", ")", "]", ":2)", ":-.5)", ":", "\\", " ", "a"]


@given(st.one_of(st.text(), st.lists(st.sampled_from(MARKS)).map("".join)))
@example("(" * 300 + ":1.2)" * 300)
def test_every_text_is_a_prompt(prompt: str) -> None:
    parts = parse_prompt(prompt)
    assert len(parts) >= 1
    for part in parts:
        assert all(span.text and math.isfinite(span.weight) and abs(span.weight) <= MAX_WEIGHT for span in part)
        assert all(one.weight != other.weight for one, other in zip(part, part[1:], strict=False))


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 2000 + ")" * 2000,
        "(a" * 800 + ":2)" * 800,
        "(" * 2000 + "]" * 2000,
        ":" + "1" * 4000,
        " " * 4000,
        ": " * 2000,
    ],
    ids=["nested", "numbers", "unmatched", "digits", "spaces", "colons"],
)
def test_no_prompt_takes_long(prompt: str) -> None:
    """It would take seconds if a pattern backtracked or every bracket walked through its text."""
    started = time.process_time()
    parse_prompt(prompt)
    assert time.process_time() - started < 1.0


@given(
    st.text(alphabet=st.characters(exclude_characters=SPECIAL, codec="utf-8")).filter(lambda text: "BREAK" not in text)
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert parse_prompt(text) == ((Span(text, 1.0),) if text else (),)
    assert plain_text(text) == text


@given(st.text().filter(lambda text: "BREAK" not in text))
def test_escaped_text_stays_as_it_is(text: str) -> None:
    escaped = "".join("\\" + c if c in SPECIAL else c for c in text)
    assert parse_prompt(escaped) == ((Span(text, 1.0),) if text else (),)


def trees() -> st.SearchStrategy[Tree]:
    leaf = st.text(alphabet="ab ,", min_size=1, max_size=3)
    weight = st.sampled_from([0.5, 1.3, 2.0])

    def bracketed(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[tuple]:
        return st.one_of(
            st.tuples(st.just("("), inner, st.just(")"), st.just(1.1)),
            st.tuples(st.just("["), inner, st.just("]"), st.just(1 / 1.1)),
            st.builds(lambda tree, w: ("(", tree, f":{w})", w), inner, weight),
        )

    flat = st.lists(leaf, max_size=3)
    return st.recursive(flat, lambda inner: st.lists(st.one_of(leaf, bracketed(inner)), max_size=3), max_leaves=12)


def render(tree: Tree) -> str:
    return "".join(node if isinstance(node, str) else node[0] + render(node[1]) + node[2] for node in tree)


def letters(tree: Tree, weight: float = 1.0) -> list[tuple[str, float]]:
    """Each letter and its weight, by walking the tree."""
    found = []
    for node in tree:
        found += [(c, weight) for c in node] if isinstance(node, str) else letters(node[1], weight * node[3])
    return found


@given(trees())
def test_nested_weights_multiply(tree: Tree) -> None:
    (part,) = parse_prompt(render(tree))
    found = [(c, span.weight) for span in part for c in span.text]
    expected = letters(tree)
    assert [c for c, _ in found] == [c for c, _ in expected]
    assert [w for _, w in found] == pytest.approx([w for _, w in expected])


def test_plain_text_has_no_brackets() -> None:
    assert plain_text("a (red:1.3) cat BREAK [and] :( dog") == "a red cat and :( dog"


def chunks(prompt: str, at_least: int = 1) -> list[tuple[list[int], list[float]]]:
    split = split_into_chunks(prompt, lambda text: list(map(ord, text)), FORMAT, at_least)
    return [(list(chunk.ids), list(chunk.weights)) for chunk in split]


def expected_chunk(text: str, weights: list[float] | None = None) -> tuple[list[int], list[float]]:
    rest = ROOM - len(text)
    ids = [1000, *map(ord, text), 1001, *[1002] * rest]
    return ids, [1.0, *(weights or [1.0] * len(text)), 1.0, *[1.0] * rest]


EMPTY = expected_chunk("")


def test_a_chunk_has_its_own_start_and_end() -> None:
    assert chunks("abc") == [expected_chunk("abc")]
    assert chunks("") == [EMPTY]
    assert chunks("abcde") == [expected_chunk("abcde")]
    assert chunks("abcdef") == [expected_chunk("abcde"), expected_chunk("f")]


def test_weights_follow_their_tokens_over_the_cut() -> None:
    assert chunks("abc(defg:2)h") == [expected_chunk("abcde", [1, 1, 1, 2, 2]), expected_chunk("fgh", [2, 2, 1])]


def test_a_break_begins_a_chunk() -> None:
    assert chunks("ab BREAK cdefgh") == [expected_chunk("ab"), expected_chunk("cdefg"), expected_chunk("h")]
    assert chunks("BREAK a") == [EMPTY, expected_chunk("a")]


def test_chunks_are_filled_up_with_empty_ones() -> None:
    assert chunks("ab", at_least=3) == [expected_chunk("ab"), EMPTY, EMPTY]
    assert chunks("abcdefgh", at_least=1) == [expected_chunk("abcde"), expected_chunk("fgh")]


@pytest.mark.parametrize("prompt", ["abcde" * (MAX_CHUNKS + 2), "a BREAK " * 5 * MAX_CHUNKS])
def test_the_number_of_chunks_is_bounded(prompt: str) -> None:
    assert len(chunks(prompt)) == MAX_CHUNKS
