"""Results of ``benchmarks.serving`` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

SERVERS = {
    "lock": "lock around diffusers",
    "litserve": "LitServe, 16 within 50 ms",
    "closed": "our networks, batched by request",
    "onnxruntime": "Darkroom, ONNX Runtime",
    "torch": "Darkroom, torch, strict",
}
LOADS = (
    ("cpu", "segments", "16 clients"),
    ("latency", "busy", "80 %"),
    ("latency", "half", "50 %"),
)
"""Parts and their lists of segments, and what they are called."""
FIGURES = {
    "cpu_s_per_picture": "CPU s a picture",
    "pictures_per_s": "pictures/s",
    "p50_s": "p50 s",
    "p95_s": "p95 s",
    "short_p95_s": "4-step p95 s",
    "mean_lanes": "lanes",
}


def table(results: Mapping[str, Any]) -> str:
    """Two tables of the parts that there are: what every server took, the median where it ran more than once, and what
    was promised."""
    return "\n".join([*_figures(results), "", *_targets(results)])


def _figures(results: Mapping[str, Any]) -> Iterator[str]:
    yield f"| load | server | {' | '.join(FIGURES.values())} |"
    yield "| --- " * (2 + len(FIGURES)) + "|"
    for part, segments, called in LOADS:
        by_server: dict[str, list[Mapping[str, Any]]] = {}
        for segment in results.get(part, {}).get(segments, []):
            by_server.setdefault(segment["server"], []).append(segment)
        for server, runs in by_server.items():
            cells = (_median([run[figure] for run in runs]) for figure in FIGURES)
            yield f"| {called} | {SERVERS[server]} | {' | '.join(cells)} |"


def _targets(results: Mapping[str, Any]) -> Iterator[str]:
    yield "| figure | measured | at most | |"
    yield "| --- | --- | --- | --- |"
    for part in ("cpu", "latency", "video"):
        for target in results.get(part, {}).get("targets", []):
            measured = "not measured" if target["value"] is None else f"**{target['value']:.3g}**"
            verdict = "" if target["met"] else "missed"
            yield f"| {target['name']} | {measured} | {target['limit']:g} | {verdict} |"


def _median(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3g}" if known else ""
