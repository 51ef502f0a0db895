"""The judge on drawings made on the spot, with the control that must fail: labels that mean nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.training.artwork import Drawings
from models.training.judge import Judge, Network, augment, kept_concepts, real_accuracy, restrict, train_judge

SLUGS = ("square", "bars", "ring", "cross")
STYLES = ("flat", "blob", "noto")
SHADES = ((200, 40, 40), (140, 30, 30), (170, 60, 40))  # of the styles; too alike to tell anything


def shape(kind: int) -> np.ndarray:
    y, x = np.mgrid[-32:32, -32:32] + 0.5
    far = np.maximum(abs(x), abs(y))
    return (
        far < 20,
        (far < 26) & (x % 16 < 8),
        (np.hypot(x, y) < 26) & (np.hypot(x, y) > 16),
        (abs(x) < 5) | (abs(y) < 5),
    )[kind]


def tiny_drawings() -> Drawings:
    """Each of the four shapes in each of the three styles."""
    pairs = [(concept, style) for style in range(3) for concept in range(4)]
    pixels = np.stack([shape(c)[..., None] * np.array([*SHADES[s], 255]) for c, s in pairs]).astype(np.uint8)
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    return Drawings(pixels, concept, style, SLUGS, SLUGS, SLUGS, ((),) * 4, STYLES)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return train_judge(tiny_drawings(), SLUGS, steps=40, width=8)


def test_judge_names_drawings_in_a_style_it_never_saw(judge: Judge) -> None:
    accuracy = real_accuracy(judge, tiny_drawings(), ["noto"])
    assert kept_concepts(accuracy, 0.8) == SLUGS


def test_judge_of_shuffled_labels_is_no_better_than_chance() -> None:
    drawings = tiny_drawings()
    # Each style calls the four shapes by other names, so that nothing learnt from two styles holds in the third.
    shuffled = replace(drawings, concept=(drawings.concept + drawings.style) % 4)
    fooled = train_judge(shuffled, SLUGS, steps=40, width=8)
    assert np.mean(list(real_accuracy(fooled, shuffled, ["noto"]).values())) <= 0.25


def test_same_seed_same_judge() -> None:
    first, again, other = (
        train_judge(tiny_drawings(), SLUGS, steps=3, seed=seed, width=8).network.head.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_saved_judge_answers_alike(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    loaded = Judge.load(tmp_path / "judge.safetensors")
    pictures = tiny_drawings().on_background((250, 250, 250))
    assert loaded.slugs == SLUGS
    assert (loaded.predict(pictures) == judge.predict(pictures)).all()


def test_load_refuses_other_weights(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a judge"):
        Judge.load(tmp_path / "other.safetensors")


def test_predict_names_the_wrong_form(judge: Judge) -> None:
    with pytest.raises(ValueError, match="float64"):
        judge.predict(np.zeros((1, 64, 64, 3)))  # type: ignore[arg-type]


def test_train_judge_names_the_concept_without_drawings() -> None:
    with pytest.raises(ValueError, match="cross"):
        train_judge(tiny_drawings().select(SLUGS[:3]), SLUGS, steps=1, width=8)


def test_augment_keeps_form_and_range() -> None:
    pixels = torch.rand(5, 4, 64, 64)
    pixels[:, :3] *= pixels[:, 3:]
    pictures = augment(pixels, torch.Generator().manual_seed(0))
    assert pictures.shape == (5, 3, 64, 64)
    assert -1 <= float(pictures.min()) < float(pictures.max()) <= 1


def test_kept_concepts_are_those_at_least_as_good() -> None:
    assert kept_concepts({"cat": 0.9, "dog": 0.89, "fox": 1.0}) == ("cat", "fox")


def test_restricted_judge_picks_the_best_of_what_is_left() -> None:
    torch.manual_seed(0)
    judge = Judge(Network(4, 8).eval(), ("a", "b", "c", "d"))
    fewer = restrict(judge, ("d", "b"))
    x = torch.rand(6, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fewer.network(x), judge.network(x)[:, [3, 1]])
    assert fewer.slugs == ("d", "b") and len(judge.network.head.weight) == 4
    assert set(fewer.predict(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8))) <= {0, 1}
