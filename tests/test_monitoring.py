"""Prometheus's rules and Grafana's dashboard ask for what is there, and alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.jobs.store import QueueStats
from service.metrics import ApiMetrics, WorkerMetrics

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "deploy/prometheus"
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/darkroom.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
TARGETS: list[str] = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
EXPRESSIONS = [rule["expr"] for rule in RULES] + TARGETS
NAME = r"\bdarkroom_\w+"


def exported(folder: Path) -> dict[str, set[str]]:
    """The names of a server's samples, each with its labels, as its ``/metrics`` tells them."""
    worker, api = WorkerMetrics(), ApiMetrics()
    for registry in (worker.registry, api.registry):
        for collector in list(registry._collector_to_names):
            if names := getattr(
                collector, "_labelnames", ()
            ):  # a family with labels has no sample before its first use
                collector.labels(*names)  # type: ignore[attr-defined]
    worker.write(folder / "worker.prom")
    api.show_queue(QueueStats(0, 0, None), 0.0)
    text = api.exposition(folder / "worker.prom").decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def named(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics of ours in PromQL, each with the labels that its selector compares."""
    for name, _, selector in re.findall(rf"({NAME})(\{{([^}}]*)\}})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_is_asked_for_is_exported(expression: str, tmp_path: Path) -> None:
    there = exported(tmp_path)
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for name, labels in named(expression):
        assert name in there, name
        assert labels <= there[name], f"{name} has the labels {sorted(there[name])}"
    assert set(re.findall(r"\bdarkroom:[\w:]+", expression)) <= recorded
    grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}
    known = set().union({"instance", "job"}, *(there[name] for name, _ in named(expression)))
    assert grouped <= known or not list(named(expression))


def test_control_a_metric_that_is_not_there_would_be_found(tmp_path: Path) -> None:
    there = exported(tmp_path)
    (found,) = named('sum(rate(darkroom_pictures_total{colour="red"}[5m]))')
    assert found == ("darkroom_pictures_total", {"colour"}) and found[0] not in there
    assert there["darkroom_requests_total"] == {"endpoint", "status"}


def test_what_is_recorded_is_asked_for() -> None:
    text = "".join(EXPRESSIONS)
    recorded = [rule["record"] for rule in RULES if "record" in rule]
    assert len(recorded) == len(set(recorded)) and all(text.count(name) >= 1 for name in recorded)


def test_alerts_say_what_to_do_and_how_soon() -> None:
    alerts = [rule for rule in RULES if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"], rule
    explained = (ROOT / "docs/operations.md").read_text()
    assert [rule["alert"] for rule in alerts if rule["alert"] not in explained] == []


def test_panels_have_a_place_each_and_the_provisioned_source() -> None:
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    (uid,) = [one["uid"] for one in source["datasources"]]
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells and max(x for x, _ in mine) < 24, panel["title"]
        cells |= mine
        assert panel["type"] == "row" or panel["datasource"]["uid"] == uid
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    wanted = ("stage", "step", "lanes", "age", "memory")  # of the breakdown that operators ask for
    titles = " ".join(f"{panel['title']} {panel.get('description', '')}" for panel in BOARD["panels"]).lower()
    assert all(word in titles for word in wanted)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    return subprocess.run([found, *arguments], capture_output=True, text=True)


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    assert (done := promtool("check", "config", PROMETHEUS / "prometheus.yml")).returncode == 0, (
        done.stdout + done.stderr
    )
    shutil.copytree(PROMETHEUS, tmp_path / "careless")
    rules = tmp_path / "careless/rules/alerts.yml"
    rules.write_text(rules.read_text().replace("== 0", "= 0"))
    assert promtool("check", "config", tmp_path / "careless/prometheus.yml").returncode != 0


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Series and what they must raise are in alerts_test.yml."""
    done = promtool("test", "rules", ROOT / "tests/alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    deaf = (
        (ROOT / "tests/alerts_test.yml")
        .read_text()
        .replace("0+10x120", "0x120")
        .replace("../deploy", str(ROOT / "deploy"))
    )
    (tmp_path / "deaf.yml").write_text(deaf)
    assert promtool("test", "rules", tmp_path / "deaf.yml").returncode != 0


def test_promtool_accepts_the_panels(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(TARGETS)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", tmp_path / "panels.yml")
    assert done.returncode == 0, done.stdout + done.stderr
