"""The table of tiles, and what measurements change in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels import tiles
from kernels.launch import INTERPRETER, Tile
from kernels.tiles import TileTable

FIRST, SECOND, SMALL = Tile({"BLOCK": 1024}, 4), Tile({"BLOCK": 2048}, 8), Tile({"BLOCK": 32}, 4)
TABLE = TileTable("blend", {"all": (FIRST, SECOND)}, {"all": SMALL}, {("all", 89): 1})


MEASURED: tiles.Measured = {"sm_90": {"blend": {"all": {"backend": "torch", "tile": 1}}}}


def test_defaults_and_their_exceptions() -> None:
    with tiles.using({}):
        found = [TABLE.tile("all", architecture) for architecture in (90, 89, INTERPRETER)]
    assert found == [FIRST, SECOND, SMALL]
    with pytest.raises(KeyError):
        TABLE.tile("none", 90)


def test_what_was_measured_comes_first() -> None:
    with tiles.using(MEASURED):
        assert TABLE.tile("all", 90) is SECOND and TABLE.fastest("all", 90) == "torch"
        assert TABLE.tile("all", 80) is FIRST and TABLE.fastest("all", 80) is None
        assert TABLE.tile("all", INTERPRETER) is SMALL and TABLE.fastest("all", INTERPRETER) is None
    with tiles.using({}):
        assert TABLE.tile("all", 90) is FIRST and TABLE.fastest("all", 90) is None


def test_the_fingerprint_follows_the_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MEASURED", tmp_path / "measured.json")
    tiles.MEASURED.write_text(json.dumps(MEASURED))
    before = tiles.fingerprint()
    assert tiles.fingerprint() == before
    tiles.MEASURED.write_text("{}")
    assert tiles.fingerprint() != before


def test_the_shipped_table_names_what_there_is() -> None:
    from benchmarks.ops import OPS
    from kernels.backend import IMPLEMENTATIONS

    for ops in json.loads(tiles.MEASURED.read_text()).values():
        for op, kinds in ops.items():
            assert all(row["backend"] in IMPLEMENTATIONS[op] for row in kinds.values())
            assert all(row["tile"] < len(OPS[op].tiles.candidates[kind]) for kind, row in kinds.items())
