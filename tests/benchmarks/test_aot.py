"""The committed table of compiled kernels is of the kernels that are here."""

from __future__ import annotations

import json

import pytest

from benchmarks.aot import DOCUMENT, TABLE, Rows, rendered, stale, unlike, update, variants
from benchmarks.compile import SHARED_LIMITS
from kernels.backend import OPS

SAMPLE = 20
"""Rows that are compiled again."""


@pytest.fixture(scope="module")
def known() -> Rows:
    rows: Rows = json.loads(TABLE.read_text())
    return rows


@pytest.fixture(scope="module")
def wanted() -> dict[str, tuple[str, object, int]]:
    return dict(variants())


def test_no_row_is_stale(known: Rows, wanted: dict[str, tuple[str, object, int]]) -> None:
    assert stale(known, wanted) == []
    some, *others = known
    assert any("not in the table" in fault for fault in stale({key: known[key] for key in others}, wanted))
    assert any("nothing asks for it" in fault for fault in stale(known, {key: wanted[key] for key in others}))
    assert any("spilled" in fault for fault in stale({**known, some: {**known[some], "faults": ["spilled"]}}, wanted))


def test_every_op_is_compiled_for_every_architecture(known: Rows) -> None:
    for architecture in SHARED_LIMITS:
        mine = {row["for"].split(",")[0] for key, row in known.items() if key.endswith(f"sm_{architecture}")}
        assert mine == set(OPS)


def test_the_document_shows_the_table(known: Rows) -> None:
    assert rendered(known) in DOCUMENT.read_text()
    assert len(rendered(known).splitlines()) > len(known) / len(SHARED_LIMITS)


@pytest.mark.timeout(1800)
def test_a_sample_compiles_to_what_the_table_says(known: Rows, wanted: dict[str, tuple[str, object, int]]) -> None:
    assert unlike(known, wanted, SAMPLE) == []


def test_rows_that_are_there_are_kept(known: Rows, wanted: dict[str, tuple[str, object, int]], tmp_path) -> None:
    few = dict(list(wanted.items())[:3])
    assert update(known, few, tmp_path / "aot.json") == []
    assert json.loads((tmp_path / "aot.json").read_text()) == {key: known[key] for key in few}
