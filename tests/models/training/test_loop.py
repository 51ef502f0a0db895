"""The training loop on networks of a few numbers: its schedule, its average, and runs that were cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.training import loop
from models.training.loop import Recipe, train

EVERY_STEP = -1.0
RECIPE = Recipe(steps=30, peak_lr=0.05, final_lr=0.001, warmup=3, save_every_s=EVERY_STEP)


class Cut(Exception):
    """Stands in for a kill."""


def new_network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def sum_of(network: nn.Module, cut: int = -1, losses: list[float] | None = None) -> loop.LossFunction:
    """The task of adding four numbers up; cut just before the step of that number."""

    def loss_function(step: int, generator: torch.Generator) -> Tensor:
        if step == cut:
            raise Cut
        x = torch.randn(32, 4, generator=generator)
        loss = (network(x) - x.sum(dim=1, keepdim=True)).square().mean()
        if losses is not None:
            losses.append(float(loss.detach()))
        return loss

    return loss_function


def run(checkpoint: Path, recipe: Recipe = RECIPE, cut: int = -1) -> dict[str, Any]:
    """Train a new network, as a new process would; what its checkpoint then holds."""
    network = new_network()
    train(network, sum_of(network, cut), recipe, checkpoint)
    return read(checkpoint)


def read(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def assert_same_bits(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(state) == {"step", "network", "average", "optimizer"}
    torch.testing.assert_close(state, expected, rtol=0.0, atol=0.0)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("uncut") / "sum.pt")


def test_learning_rate_at_its_corners() -> None:
    recipe = Recipe(steps=1000, peak_lr=1.0, final_lr=0.1, warmup=10, decay=0.4)
    rates = {step: recipe.learning_rate(step) for step in (0, 4, 9, 10, 599, 600, 800, 999, 1000, 2000)}
    assert rates[0] == 0.1 and rates[4] == 0.5 and rates[9] == 1.0
    assert rates[10] == rates[599] == rates[600] == 1.0
    assert rates[800] == pytest.approx(0.55)  # half way down a half cosine
    assert 0.1 < rates[999] < 0.1001
    assert rates[1000] == rates[2000] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("warmup", "decay", "rates"),
    [
        (0, 0.0, [1.0, 1.0, 1.0, 1.0]),
        (0, 1.0, [1.0, 0.8682, 0.55, 0.2318]),
        (4, 0.0, [0.25, 0.5, 0.75, 1.0]),
        (2, 0.5, [0.5, 1.0, 1.0, 0.55]),
        (100, 0.5, [0.01, 0.02, 0.03, 0.04]),
    ],
)
def test_learning_rate_of_recipes_that_lack_a_part(warmup: int, decay: float, rates: list[float]) -> None:
    recipe = Recipe(steps=4, peak_lr=1.0, final_lr=0.1, warmup=warmup, decay=decay)
    assert [recipe.learning_rate(step) for step in range(4)] == pytest.approx(rates, abs=1e-4)


class Climber(nn.Module):
    """One weight under a constant gradient: Adam moves it by exactly the learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.zeros(1))


def climb(checkpoint: Path, recipe: Recipe) -> tuple[list[float], list[float]]:
    """Heights of the climber and of its average after each step."""
    climber = Climber()
    heights, averages = [], []

    def note(_step: int, average: nn.Module) -> None:
        heights.append(climber.height.item())
        averages.append(average.height.item())

    train(climber, lambda _step, _generator: -climber.height.sum(), recipe, checkpoint, note)
    return heights, averages


def test_steps_are_taken_at_the_rate_of_the_recipe(tmp_path: Path) -> None:
    recipe = replace(RECIPE, weight_decay=0.0)
    heights, _ = climb(tmp_path / "climb.pt", recipe)
    moves = [after - before for before, after in zip([0.0, *heights], heights, strict=False)]
    assert moves == pytest.approx([recipe.learning_rate(step) for step in range(recipe.steps)], rel=1e-3)


def test_the_average_lags_and_more_so_with_a_longer_memory(tmp_path: Path) -> None:
    heights, short = climb(tmp_path / "short.pt", replace(RECIPE, ema=0.5))
    same_heights, long = climb(tmp_path / "long.pt", replace(RECIPE, ema=0.999))
    assert heights == same_heights
    assert all(0.0 < low < middle < high for low, middle, high in zip(long[9:], short[9:], heights[9:], strict=True))
    assert all(0.0 < low < high for low, high in zip(long, heights, strict=True))
    assert long[0] == pytest.approx(0.9 * heights[0])  # a young average remembers little, whatever the recipe says


def test_no_memory_is_no_average(tmp_path: Path) -> None:
    heights, averages = climb(tmp_path / "none.pt", replace(RECIPE, ema=0.0))
    assert averages == heights


def test_a_network_learns(tmp_path: Path) -> None:
    network, losses = new_network(), []
    average = train(network, sum_of(network, losses=losses), replace(RECIPE, steps=100), tmp_path / "sum.pt")
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    with torch.no_grad():
        assert float(average(torch.full((1, 4), 0.25))) == pytest.approx(1.0, abs=0.3)
    assert not average.training and not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("cuts", [(0,), (1,), (13,), (29,), (4, 4, 17)], ids=str)
def test_a_cut_and_resumed_run_equals_the_uncut_run(tmp_path: Path, uncut: dict[str, Any], cuts: tuple[int]) -> None:
    checkpoint = tmp_path / "sum.pt"
    for cut in cuts:
        with pytest.raises(Cut):
            run(checkpoint, cut=cut)
        assert checkpoint.exists() == (cut > 0)
    assert_same_bits(run(checkpoint), uncut)


def test_another_seed_is_another_run(tmp_path: Path, uncut: dict[str, Any]) -> None:
    """A control: equal runs would mean nothing if all runs were equal."""
    other = run(tmp_path / "sum.pt", replace(RECIPE, seed=1))
    for part in ("network", "average"):
        assert all((other[part][name] - weight).abs().max() > 1e-3 for name, weight in uncut[part].items())


def test_every_step_of_every_seed_draws_something_else(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 1):
        network = new_network()

        def loss_function(_step: int, generator: torch.Generator, network: nn.Module = network) -> Tensor:
            x = torch.randn(1, 4, generator=generator)
            drawn.append(tuple(x[0].tolist()))
            return network(x).square().mean()

        train(network, loss_function, replace(RECIPE, seed=seed), tmp_path / f"{seed}.pt")
    assert len(set(drawn)) == len(drawn) == 2 * RECIPE.steps


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path, uncut: dict[str, Any]) -> None:
    run(tmp_path / "sum.pt")
    assert_same_bits(run(tmp_path / "sum.pt", cut=RECIPE.steps), uncut)
    average = train(new_network(), lambda _step, _generator: pytest.fail("trained"), RECIPE, tmp_path / "sum.pt")
    torch.testing.assert_close(average.state_dict(), uncut["average"], rtol=0.0, atol=0.0)


def half_written(state: object, path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 half of it")
    raise Cut


def not_renamed(source: Path, target: Path) -> None:
    raise Cut


@pytest.mark.parametrize(("owner", "name", "killed"), [(torch, "save", half_written), (os, "replace", not_renamed)])
def test_a_kill_during_a_save_leaves_the_old_checkpoint(
    tmp_path: Path, uncut: dict[str, Any], owner: object, name: str, killed: Callable[..., None]
) -> None:
    checkpoint = tmp_path / "sum.pt"
    with pytest.raises(Cut):
        run(checkpoint, cut=9)
    before = checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(owner, name, killed)
        run(checkpoint)
    assert checkpoint.read_bytes() == before and read(checkpoint)["step"] == 9
    assert_same_bits(run(checkpoint), uncut)
    assert [path.name for path in tmp_path.iterdir()] == ["sum.pt"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, value: str) -> None:
    network = new_network()
    healthy = sum_of(network)

    def breaking(step: int, generator: torch.Generator) -> Tensor:
        return healthy(step, generator) * (float(value) if step == 6 else 1.0)

    with pytest.raises(RuntimeError, match=f"{value} at step 6"):
        train(network, breaking, RECIPE, tmp_path / "sum.pt")
    state = read(tmp_path / "sum.pt")
    assert state["step"] == 6 and all(weight.isfinite().all() for weight in state["network"].values())


def test_saves_come_at_the_end_and_as_often_as_asked(tmp_path: Path) -> None:
    for every, expected in ((3600.0, [30]), (EVERY_STEP, list(range(1, 31)))):
        network, saved = new_network(), []
        recipe = replace(RECIPE, save_every_s=every)
        train(network, sum_of(network), recipe, tmp_path / f"{every}.pt", lambda step, _: saved.append(step))  # noqa: B023
        assert saved == expected
