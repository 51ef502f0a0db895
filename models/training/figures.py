"""How well a model draws single things: figures, each with what it would be for a model that knows nothing.

Things are kept if the judge knows them in real drawings. Pairs of thing and style that no training saw have figures of
their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, Concept
from models.training.judge import Judge

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """One picture to ask for; concept and style are places in the kept concepts and in CAPTION_STYLES."""

    concept: int
    style: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class RealArt:
    """All real drawings in CAPTION_STYLES, on white: uint8 [M, H, W, 3]; row [C, S] finds the kept concepts' own."""

    pictures: Pictures
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """The pictures [N, H, W, 3] that requests got, and what was found in them, row for row.

    judged is the concept that the judge names, nearest the real drawing that is nearest, and distance how far that is
    (RMS, levels).
    """

    requests: tuple[Request, ...]
    pictures: Pictures
    judged: NDArray[np.int64]
    nearest: NDArray[np.int64]
    distance: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def concept(self) -> NDArray[np.int64]:
        """The concept that was asked for: [N]."""
        return np.array([request.concept for request in self.requests], np.int64)

    @property
    def style(self) -> NDArray[np.int64]:
        """The style that was asked for: [N]."""
        return np.array([request.style for request in self.requests], np.int64)

    def where(self, keep: NDArray[np.bool_]) -> Answers:
        """Some of the rows."""
        requests = tuple(request for request, kept in zip(self.requests, keep, strict=True) if kept)
        return Answers(requests, self.pictures[keep], self.judged[keep], self.nearest[keep], self.distance[keep])


def ask(concepts: Sequence[Concept], per_pair: int, first_seed: int = 0) -> tuple[Request, ...]:
    """per_pair requests "NAME STYLE" for each concept and style, with seeds that count up from first_seed."""
    places = product(range(len(concepts)), range(len(CAPTION_STYLES)), range(per_pair))
    return tuple(
        Request(c, s, f"{concepts[c].name} {CAPTION_STYLES[s]}", first_seed + i) for i, (c, s, _) in enumerate(places)
    )


def real_art(drawings: Drawings, slugs: Sequence[str]) -> RealArt:
    """Raises ValueError when one of slugs is not drawn in every style of CAPTION_STYLES."""
    chosen = drawings.select(None, CAPTION_STYLES)
    rows = {(int(c), int(s)): i for i, (c, s) in enumerate(zip(chosen.concept, chosen.style, strict=True))}
    wanted = [[(drawings.slugs.index(c), drawings.styles.index(s)) for s in CAPTION_STYLES] for c in slugs]
    missing = [slug for slug, pairs in zip(slugs, wanted, strict=True) if any(pair not in rows for pair in pairs)]
    if missing:
        raise ValueError(f"{missing} are not drawn in all of {CAPTION_STYLES}")
    return RealArt(chosen.on_background(), np.array([[rows[pair] for pair in pairs] for pairs in wanted]))


def examine(requests: Sequence[Request], pictures: Pictures, judge: Judge, art: RealArt) -> Answers:
    """What the judge, whose classes are the kept concepts, and a search among the real drawings find."""
    found, far = nearest(pictures, art.pictures)
    return Answers(tuple(requests), pictures, judge.predict(pictures), found, far)


def derangement(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random permutation of 0 .. count - 1 that leaves nothing in its place."""
    if count < 2:
        raise ValueError(f"{count} things cannot all change places")
    while True:  # one permutation in e, about 2.7, will do
        order = rng.permutation(count)
        if not (order == np.arange(count)).any():
            return order


def chance_bounds(classes: int, pictures: int) -> tuple[float, float]:
    """Three standard errors either side of the share 1 / classes that a guess gets right."""
    share = 1 / classes
    error = 3 * (share * (1 - share) / pictures) ** 0.5
    return max(0.0, share - error), min(1.0, share + error)


def judged(answers: Answers, names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Shares that the judge named rightly: of all, per style, per concept, and under both controls.

    Shuffling the prompts among the pictures leaves exactly chance. Giving each concept's pictures another concept's
    prompt (a derangement) leaves less than chance, the less the better the model, so it has an upper bound only.
    """
    found, concept, style = answers.judged, answers.concept, answers.style
    right, rng = found == concept, np.random.default_rng(seed)
    low, high = chance_bounds(len(names), len(found))
    shuffled = float((found == rng.permutation(concept)).mean())
    deranged = float((found == derangement(len(names), rng)[concept]).mean())
    return {
        "classes": len(names),
        "accuracy": float(right.mean()),
        "per_style": {word: float(right[style == i].mean()) for i, word in enumerate(CAPTION_STYLES)},
        "per_concept": {name: float(right[concept == i].mean()) for i, name in enumerate(names)},
        "chance": 1 / len(names),
        "chance_bounds": [low, high],
        "shuffled": shuffled,
        "deranged": deranged,
        "controls_at_chance": low <= shuffled <= high and deranged <= high,
        "mistakes": mistakes(answers, names),
    }


def mistakes(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every picture that the judge names wrongly."""
    return [
        {"prompt": r.prompt, "seed": r.seed, "judged": names[k]}
        for r, k in zip(answers.requests, answers.judged, strict=True)
        if k != r.concept
    ]


def nearest(
    pictures: Pictures, references: Pictures, chunk: int = 512
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of pictures [N, H, W, 3] the nearest of references [M, H, W, 3] and their RMS distance in levels."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    best, far = np.zeros(len(flat), np.int64), np.full(len(flat), np.inf, np.float32)
    for start in range(0, len(references), chunk):
        part = references[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float32)
        square = (flat**2).sum(1)[:, None] - 2 * flat @ part.T + (part**2).sum(1)
        found = square.argmin(1)
        closer = square.min(1) < far
        best[closer], far[closer] = found[closer] + start, square.min(1)[closer]
    return best, np.sqrt(np.maximum(far, 0) / flat.shape[1])


def style_obeyed(answers: Answers, art: RealArt) -> float:
    """Share of pictures whose nearest among their concept's own drawings is the one in the style asked for."""
    own = art.pictures[art.row[answers.concept]]
    found = [nearest(picture[None], three)[0][0] for picture, three in zip(answers.pictures, own, strict=True)]
    return float(np.mean(np.array(found) == answers.style))


def corner_distance(pictures: Pictures) -> NDArray[np.float64]:
    """How far the four corner pixels of each picture are from white, in levels on average: float64 [N]."""
    return (255.0 - pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]]).mean((1, 2))


def whiteness(pictures: Pictures, own: Pictures) -> dict[str, float]:
    """The corners of pictures whose own real drawing, in own [N, H, W, 3], has white ones."""
    far = corner_distance(pictures[corner_distance(own) < 1])
    near = float((far <= 0.03 * 255).mean())
    return {"pictures": len(far), "mean_levels": float(far.mean()), "share_within_3_percent": near}


def measure(answers: Answers, names: Sequence[str], art: RealArt) -> dict[str, Any]:
    """The figures of the things and styles that training saw together."""
    own = art.row[answers.concept, answers.style]
    return {
        "pictures": len(answers),
        "judge": judged(answers, names),
        "style_obeyed": style_obeyed(answers, art),
        "white": whiteness(answers.pictures, art.pictures[own]),
        "nearest": {
            "among": len(art.pictures),
            "is_the_one_asked_for": float((answers.nearest == own).mean()),
            "median_rms_levels": float(np.median(answers.distance)),
        },
    }


def is_held_out(
    requests: Sequence[Request], concepts: Sequence[Concept], pairs: Collection[tuple[str, str]]
) -> NDArray[np.bool_]:
    """Which requests are for one of these (slug, style) pairs: bool [N]."""
    return np.array([(concepts[r.concept].slug, CAPTION_STYLES[r.style]) in pairs for r in requests], bool)


def measure_held_out(unseen: Answers, seen: Answers, names: Sequence[str], art: RealArt) -> dict[str, Any]:
    """The figures of pairs of thing and style that training never saw, beside those of the same things in the styles
    that it did see."""
    same = seen.where(np.isin(seen.concept, unseen.concept))
    own, all_own = art.row[unseen.concept, unseen.style], art.row[unseen.concept]
    copied = (unseen.nearest[:, None] == all_own).any(1) & (unseen.nearest != own)
    pairs = sorted({request.prompt for request in unseen.requests})
    order = np.random.default_rng(0).permutation(len(unseen))
    return {
        "pairs": pairs,
        "pictures": len(unseen),
        "accuracy": float((unseen.judged == unseen.concept).mean()),
        "accuracy_in_seen_styles": float((same.judged == same.concept).mean()),
        "style_obeyed": style_obeyed(unseen, art),
        "style_obeyed_in_seen_styles": style_obeyed(same, art),
        "nearest_is_the_unseen_drawing": float((unseen.nearest == own).mean()),
        "nearest_is_a_seen_drawing_of_it": float(copied.mean()),
        "shuffled": float((unseen.judged == unseen.concept[order]).mean()),
        "at_most": chance_bounds(len(pairs), len(unseen))[1],
        "mistakes": mistakes(unseen, names),
    }
