"""Weights inside a prompt, and prompts longer than a text tower, as AUTOMATIC1111's web UI made them known.

``(word)`` multiplies a word's weight by 1.1, ``[word]`` divides it by 1.1, ``(word:1.3)`` multiplies it by 1.3;
brackets nest. A backslash makes the next bracket or backslash an ordinary character. ``BREAK`` begins a new chunk. A
bracket without its partner is an ordinary character. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

STEP = 1.1
"""What one pair of brackets multiplies or divides by."""
MAX_WEIGHT = 100.0
"""Larger weights, of either sign, are cut to this: beyond it a context is that one word, and in the end infinite."""
MAX_CHUNKS = 32
"""Text beyond is dropped, as the published pipelines drop all text beyond the first chunk."""

_PIECE = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*+[+-]?(?:\d++(?:\.\d*+)?|\.\d++)\s*+\)|:|\\|[^\\()\[\]:]+")
_OPENING = {")": "(", "]": "["}
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Span:
    """Text of one weight."""

    text: str
    weight: float


def parse_prompt(prompt: str) -> tuple[tuple[Span, ...], ...]:
    """The parts of a prompt between its ``BREAK``s, each as spans of text whose neighbours differ in weight.

    Every string is a prompt: nothing raises. A part without text has no spans. Takes time linear in the length.
    """
    weighted: list[tuple[str, float]] = []
    weights = [1.0]
    for piece in _pieces(prompt):
        if piece is None:
            weights.pop()
        elif isinstance(piece, float):
            weights.append(_bounded(weights[-1] * _bounded(piece)))
        else:
            weighted.append((piece, weights[-1]))
    parts: list[list[Span]] = [[]]
    for weight, run in groupby(weighted, key=itemgetter(1)):
        for i, text in enumerate(_split_at_breaks("".join(text for text, _ in run))):
            if i:
                parts.append([])
            if text:
                parts[-1].append(Span(text, weight))
    return tuple(map(tuple, parts))


def plain_text(prompt: str) -> str:
    """A prompt's words without its brackets and weights, for an encoder that reads no weights."""
    return " ".join("".join(span.text for span in part) for part in parse_prompt(prompt))


def _pieces(prompt: str) -> list[str | float | None]:
    """Text; a number where a pair of brackets begins that multiplies by it; None where the last begun one ends."""
    pieces: list[str | float | None] = []
    opened: list[int] = []
    waiting = {"(": 0, "[": 0}
    for match in _PIECE.finditer(prompt):
        text = match[0]
        escaped = len(text) == 2 and text[0] == "\\"
        bracket = "" if escaped else _OPENING.get(text[-1], "")
        if text in waiting:
            waiting[text] += 1
            opened.append(len(pieces))
            pieces.append(text)
        elif bracket and waiting[bracket]:
            while (begun := str(pieces[opened[-1]])) != bracket:  # without a partner inside this pair: it stays text
                waiting[begun] -= 1
                opened.pop()
            waiting[bracket] -= 1
            pieces[opened.pop()] = _factor(text)
            pieces.append(None)
        else:
            pieces.append(text[1:] if escaped else text)
    return pieces


def _factor(closing: str) -> float:
    """What ``)``, ``]`` or ``:1.3)`` makes its pair multiply by."""
    if closing == ")":
        return STEP
    return 1.0 / STEP if closing == "]" else float(closing[1:-1])


def _bounded(weight: float) -> float:
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


def _split_at_breaks(text: str) -> list[str]:
    """Without the spaces around each ``BREAK``."""
    parts = _BREAK.split(text)
    last = len(parts) - 1
    parts = [part.lstrip() if i > 0 else part for i, part in enumerate(parts)]
    return [part.rstrip() if i < last else part for i, part in enumerate(parts)]


@dataclass(frozen=True)
class Chunk:
    """What a text tower reads at once: start, at most ``length - 2`` tokens, end, padding."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    """1 for start, end and padding."""


@dataclass(frozen=True)
class ChunkFormat:
    """How a text tower wants its chunks."""

    length: int
    start: int
    end: int
    padding: int

    def chunk(self, tokens: Sequence[tuple[int, float]]) -> Chunk:
        """A chunk of at most ``length - 2`` (token id, weight)."""
        rest = self.length - len(tokens) - 2
        ids = (self.start, *(token for token, _ in tokens), self.end, *(self.padding,) * rest)
        return Chunk(ids, (1.0, *(weight for _, weight in tokens), 1.0, *(1.0,) * rest))


def split_into_chunks(
    prompt: str, tokenize: Callable[[str], Sequence[int]], form: ChunkFormat, at_least: int = 1
) -> list[Chunk]:
    """A prompt as chunks: one a part, or more where a part is longer than the tower; then empty ones.

    Args:
        prompt: with weights and ``BREAK``s.
        tokenize: text -> token ids, without start, end or padding.
        form: the tower's.
        at_least: number of chunks to fill up to with empty ones.

    Returns:
        At least ``at_least`` chunks, and no more than the larger of it and ``MAX_CHUNKS``.
    """
    room = form.length - 2
    chunks: list[Chunk] = []
    for part in parse_prompt(prompt)[:MAX_CHUNKS]:
        tokens = [(token, span.weight) for span in part for token in tokenize(span.text)]
        chunks += [form.chunk(tokens[i : i + room]) for i in range(0, max(len(tokens), 1), room)]
    chunks = chunks[:MAX_CHUNKS]
    return chunks + [form.chunk(())] * (at_least - len(chunks))
