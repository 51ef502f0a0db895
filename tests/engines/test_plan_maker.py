"""What plans are built for. They run in tests/gpu/test_engines.py."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import plan_maker as module
from engines.cache import EngineCache, kernels_of
from engines.networks import Network
from engines.plan import PLAN_FILE, REPORT_FILE, PlanOptions, PlanReport
from engines.plan_maker import PlanMaker
from models.adapters.file import DENOISER
from models.adapters.whole import AdapterSet
from tests.support.tiny_towers import write_tiny_sd3, write_tiny_svd

pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is published for Linux on x86-64")


def maker_of(folder: Path, cache: Path, **changes: Any) -> PlanMaker:
    values: dict[str, Any] = {"precision": "bf16", "lanes": (2, 8), "architectures": ("sm89",), **changes}
    return PlanMaker(folder, EngineCache(cache), "tensorrt-rtx", **values)


def shapes(network: Network, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(port.shape(sizes)) for port in network.signature.inputs)


def test_plans_are_made_of_what_a_row_spends_its_time_in(tmp_path: Path, sdxl_folder: Path) -> None:
    write_tiny_svd(tmp_path / "svd")
    write_tiny_sd3(tmp_path / "sd3")
    assert list(maker_of(sdxl_folder, tmp_path).networks()) == ["unet", "vae/decoder"]
    assert list(maker_of(tmp_path / "svd", tmp_path).networks()) == ["unet", "vae/decoder"]
    names = list(maker_of(tmp_path / "sd3", tmp_path).networks())
    assert names[0] == "transformer" and names[-1] == "vae/decoder" and not any("encoder" in n for n in names[:-1])


def test_a_plan_is_for_the_shapes_of_calls_or_the_native_ones(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, PlanOptions]] = []
    monkeypatch.setattr(
        module, "build_network_plan", lambda _, __, precision, options, *___: asked.append((precision, options))
    )
    maker = pickle.loads(pickle.dumps(maker_of(sdxl_folder, tmp_path)))
    unet, decoder = maker.networks().values()
    native = {"height": 8, "width": 8, "tokens": 20}
    seen = {"height": 8, "width": 12, "tokens": 40}
    maker.build("unet", ())
    maker.build("unet", [shapes(unet, {"batch": 2, **seen}), shapes(unet, {"batch": 4, **seen})])
    maker.build("vae/decoder", [shapes(decoder, {"batch": 1, "height": 16, "width": 24})] * 3)
    assert [precision for precision, _ in asked] == ["bf16"] * 3
    assert all(options.architectures == ("sm89",) for _, options in asked)
    assert [options.buckets for _, options in asked] == [
        ({"batch": 8, **native}, {"batch": 2, **native}),
        ({"batch": 8, **seen}, {"batch": 2, **seen}),
        ({"batch": 1, "height": 16, "width": 24},),
    ]


def test_the_plan_that_was_used_last_is_found_and_forgotten(
    sdxl_folder: Path, tmp_path: Path, sdxl_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(_graph: Path, options: PlanOptions, folder: Path, _timing: Path) -> None:
        sizes = tuple(map(dict, options.buckets))
        report = PlanReport("tensorrt-rtx", "1", options.architectures, sizes, {}, {}, (), 4, 0.0)
        maker.networks()["vae/decoder"].signature.write(folder)
        (folder / PLAN_FILE).write_bytes(b"plan")
        (folder / REPORT_FILE).write_text(json.dumps(asdict(report)))

    monkeypatch.setattr("engines.prepare.build_plan", built)
    monkeypatch.setattr("engines.prepare.build_graph", lambda *_: tmp_path)
    maker = maker_of(sdxl_folder, tmp_path)
    decoder = maker.networks()["vae/decoder"]
    assert maker.find("vae/decoder") is None
    native = maker.build("vae/decoder", ())
    assert maker.find("vae/decoder") == native
    other = maker.build("vae/decoder", [shapes(decoder, {"batch": 1, "height": 4, "width": 4})])
    assert maker.find("vae/decoder") == other != native
    buckets = maker.buckets(other)
    assert buckets is not None and buckets.takes((4, 4, 4)) and not buckets.takes((4, 16, 16))
    assert maker_of(sdxl_folder, tmp_path, refittable=True).find("vae/decoder") == other
    for changes in ({"precision": "fp16"}, {"architectures": ("sm80",)}):
        assert maker_of(sdxl_folder, tmp_path, **changes).find("vae/decoder") is None
    kernels_of(other.parent).write_bytes(b"compiled when it was loaded")
    maker.discard("vae/decoder", other)
    assert maker.find("vae/decoder") == native and not kernels_of(other.parent).exists()


def test_a_set_of_adapters_takes_the_plan_of_the_plain_model(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Network, PlanOptions, Path | None]] = []
    monkeypatch.setattr(
        module,
        "build_network_plan",
        lambda network, _, __, options, ___, base=None: asked.append((network, options, base)),
    )
    found: list[PlanMaker] = []
    monkeypatch.setattr(PlanMaker, "_found", lambda maker, _name: found.append(maker) or tmp_path / "plan" / PLAN_FILE)
    report = PlanReport("tensorrt-rtx", "0", (), ({"batch": 2},), {}, {}, (), 4, 0.0)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / REPORT_FILE).write_text(json.dumps(asdict(report)))
    adapters = AdapterSet(((tmp_path / "a.safetensors", 1.0),), "identity", frozenset({DENOISER}))
    for changes in ({"refittable": True}, {"refittable": False}):
        maker = maker_of(sdxl_folder, tmp_path, adapters=adapters, **changes)
        for name in ("unet", "vae/decoder"):
            maker.build(name, ())
    bases = [base is not None for _, _, base in asked]
    assert bases == [True, False, False, False], "the set's own network, of plans that can be refitted"
    (base,) = found
    assert base.adapters is None and base.refittable
    network, options, _ = asked[0]
    assert network.adapters == "identity" and options.buckets == report.buckets and options.refittable
    assert not asked[1][0].adapters
