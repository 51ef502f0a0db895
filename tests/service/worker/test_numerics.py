"""Numerics ids name what bytes depend on, and identities what a network is, and nothing else."""

from __future__ import annotations

import re

from service.worker.numerics import network_id, numerics_id

PARTS = {"backend": "torch", "precision": "fp32", "device": "cpu/AVX2"}


def test_an_id_is_short_and_stable() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", numerics_id(PARTS))
    assert numerics_id(PARTS) == "8ed9d3ff7b8af4a8"  # stored with results: another release must find the same one


def test_the_order_of_the_parts_does_not_matter() -> None:
    assert numerics_id(dict(reversed(PARTS.items()))) == numerics_id(PARTS)


def test_every_part_matters() -> None:
    changed = [{**PARTS, name: "x"} for name in PARTS] + [{**PARTS, "more": ""}, {}]
    assert len({numerics_id(parts) for parts in [PARTS, *changed]}) == len(changed) + 1


def test_names_and_values_do_not_run_together() -> None:
    assert numerics_id({"a": "bc"}) != numerics_id({"ab": "c"})


def test_a_network_is_its_weights_and_its_back_end() -> None:
    plain = network_id("unet", "w", "torch")
    assert plain == network_id("unet", "w", "torch") and plain.startswith("unet-")
    others = [network_id("unet", "v", "torch"), network_id("unet", "w", "onnxruntime"), network_id("vae", "w", "torch")]
    assert len({plain, *others}) == len(others) + 1
