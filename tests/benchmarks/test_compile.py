"""What a launch is specialised to, and what counts as a fault of the compiled kernel."""

from __future__ import annotations

import pytest
import torch

from benchmarks.compile import Facts, multiplies, problems, variant
from kernels.attention import plan_attention
from kernels.geglu import plan_geglu
from kernels.launch import Launch, Tile
from kernels.temporal_conv import Around, plan_conv

GOOD = Facts(200, 0, 64 * 1024, 8, 2, 16, False)


def geglu(rows: int, columns: int) -> Launch:
    return plan_geglu(torch.empty(rows, columns, device="meta", dtype=torch.bfloat16), 90).launches[0]


def test_numbers_are_specialised_as_triton_does() -> None:
    found = variant(geglu(48, 20))
    assert dict(found.signature)["x_ptr"] == "*bf16" and dict(found.signature)["rows"] == "i32"
    assert found.aligned == ("x_ptr", "y_ptr", "rows")  # 16 divides 48 rows, not a stride of 20
    assert ("C", 10) in found.known and set(found.tile_names) == {"BR", "BC"}
    one = variant(geglu(1, 20))
    assert dict(one.signature)["rows"] == "constexpr" and ("rows", 1) in one.known


def test_what_is_left_out_is_known_to_be() -> None:
    x, weight = (torch.empty(*shape, device="meta", dtype=torch.float16) for shape in ((1, 64, 16), (16, 16, 3, 1, 1)))
    found = variant(plan_conv(x, weight, None, 4, Around(), 90).launch)
    assert ("bias_ptr", None) in found.known and "bias_ptr" not in found.aligned
    assert multiplies(found) and not multiplies(variant(geglu(8, 16)))


def test_the_digest_is_of_everything_that_is_compiled() -> None:
    launch = geglu(48, 32)
    same, taller = geglu(96, 32), Launch(launch.kernel, launch.grid, launch.arguments, Tile(launch.tile.sizes, 8))
    q = torch.empty(1, 64, 64, device="meta", dtype=torch.bfloat16)
    others = [taller, geglu(47, 32), geglu(48, 64), plan_attention(q, q, q, 1, False, 90).launches[0]]
    digests = [variant(one).digest for one in (launch, same, *others)]
    assert digests[0] == digests[1] and len(set(digests)) == 1 + len(others)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"spilled_bytes": 16}, "16 bytes spilled"),
        ({"shared_bytes": 228 * 1024}, "shared memory"),
        ({"serialised": True}, "wait for each other"),
        ({"matrix_instructions": 0}, "no wgmma"),
        ({"wide_loads": 0}, "no load of 16 bytes"),
    ],
)
def test_faults(change: dict[str, int], fault: str) -> None:
    found = problems(Facts(**{**vars(GOOD), **change}), 90, multiplies=True)
    assert len(found) == bool(fault) and all(fault in one for one in found)
    assert not problems(Facts(**{**vars(GOOD), "wide_loads": 0, "matrix_instructions": 0}), 90, False, bulk=False)
