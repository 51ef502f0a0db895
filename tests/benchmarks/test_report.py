"""Results: what is kept when only a part is measured again, and what counts as met."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.report import DOCUMENT, Target, commit, document, facts, percentile, save
from benchmarks.servers import cpu_between


def test_a_part_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    save(path, "cpu", {"x": 1})
    save(path, "latency", {"x": 2})
    save(path, "cpu", {"x": 3})
    assert json.loads(path.read_text()) == {"cpu": {"x": 3}, "latency": {"x": 2}}
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_table_goes_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "figures.md"
    path.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n")
    document("x", "| new |", path)
    assert path.read_text() == "a\n<!-- x: begin -->\n| new |\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="y: begin"):
        document("y", "", path)
    assert "<!-- serving: begin -->" in DOCUMENT.read_text()


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(2.0, True, True), (1.99, True, False), (2.0, False, True), (2.01, False, False), (math.nan, True, False)],
)
def test_a_target_is_met_or_not(value: float, at_least: bool, met: bool) -> None:
    target = Target("ratio", value, 2.0, at_least)
    assert target.met is met
    assert json.dumps(target.to_json(), allow_nan=False)
    assert Target("ratio", math.nan, 2.0, at_least=False).met is False


def test_facts_hold_no_path(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"weights")
    text = json.dumps(facts(tmp_path))
    assert str(tmp_path.parent) not in text
    assert len(commit().removesuffix("+changes")) in (0, 40)


def test_processor_time_is_counted_only_when_no_process_came_or_went() -> None:
    assert cpu_between({1: 1.0, 2: 2.0}, {1: 1.5, 2: 4.0}) == pytest.approx(2.5)
    with pytest.raises(RuntimeError, match="changed"):
        cpu_between({1: 1.0, 2: 2.0}, {1: 1.5, 3: 4.0})


def test_percentiles() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert math.isnan(percentile([], 95))
