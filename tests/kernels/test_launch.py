"""Launches as they are planned, without running them."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import plan_attention
from kernels.geglu import plan_geglu
from kernels.launch import (
    ARCHITECTURES,
    INTERPRETER,
    Launch,
    Plan,
    Tile,
    architecture,
    cdiv,
    next_power_of_2,
    planned_for,
)


def test_a_plan_needs_shapes_alone() -> None:
    x = torch.empty(1000, 2 * 320, device="meta", dtype=torch.bfloat16)
    plan = plan_geglu(x, 90)
    (launch,) = plan.launches
    assert plan.output.shape == (1000, 320) and plan.output.device.type == "meta"
    assert launch.grid == (cdiv(320, launch.tile.sizes["BC"]) * cdiv(1000, launch.tile.sizes["BR"]),)
    assert launch.arguments["C"] == 320 and launch.arguments["row_stride"] == 640


def test_the_tile_is_the_architectures() -> None:
    q = torch.empty(2, 256, 320, device="meta", dtype=torch.bfloat16)
    tiles = {a: plan_attention(q, q, q, 2, False, a).launches[0].tile for a in (*ARCHITECTURES, INTERPRETER)}
    assert tiles[90] != tiles[89]  # 160 channels a head, which spill there
    assert tiles[INTERPRETER].sizes["BM"] < tiles[89].sizes["BM"]


def test_launches_run_in_their_order() -> None:
    ran: list[tuple[str, tuple[int, ...], dict[str, object]]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda **given: ran.append((self.name, grid, given))

    tile = Tile({"BLOCK": 64}, 4, 2)
    launches = tuple(Launch(Recorder(name), (i,), {"x": i}, tile) for i, name in enumerate("ab"))
    output = torch.zeros(1)
    assert Plan(output, launches).run() is output
    options = {"BLOCK": 64, "num_warps": 4, "num_stages": 2}
    assert ran == [("a", (0,), {"x": 0, **options}), ("b", (1,), {"x": 1, **options})]


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), 90), ((8, 6), 89), ((12, 0), 89), ((10, 3), 100), ((7, 5), None)]
)
def test_other_chips_take_tiles_that_fit(
    capability: tuple[int, int], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert architecture(torch.device("cuda", 0)) == expected


def test_a_cpu_has_no_tiles() -> None:
    assert architecture(torch.device("cpu")) is None
    with pytest.raises(ValueError, match="device=cpu: expected a CUDA device of sm_80"):
        planned_for(torch.zeros(1))


def test_sizes() -> None:
    assert [cdiv(size, 8) for size in (1, 8, 9)] == [1, 1, 2]
    assert [next_power_of_2(size) for size in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
