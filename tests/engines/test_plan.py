"""Real plans by tensorrt-rtx, whose builder needs no GPU; what they hold is read from the network definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.export import export
from engines.plan import PLAN_FILE, BuildLog, Flavour, PlanOptions, PlanReport, build_plan, load_tensorrt, logger_of
from engines.precision import Precision
from engines.signature import Signature
from tests.support.exportable import FAMILIES, by_rotation

pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is published for Linux on x86-64")

BUCKET = {"batch": 2, "height": 4, "width": 4}
CASES: list[tuple[str, Precision]] = [
    ("sd3-transformer", "bf16"),
    ("svd-decoder", "fp16"),
    ("svd-image-encoder", "bf16"),
    ("sd3-text-encoder-3", "fp32"),
    ("sd-text-encoder", "fp16"),
    ("sd2-unet", "fp16"),
    ("class-conditional-unet", "bf16"),
    ("quantised-decoder", "fp32"),
    ("svd-unet", "fp16"),
    ("sd2-unet", "bf16"),
    ("sd3-transformer", "fp16"),
]
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", by_rotation(CASES), ids=str)
def test_a_family_in_a_precision(case: tuple[str, Precision], tmp_path: Path) -> None:
    family, precision = case
    graph = export(*FAMILIES[family](tmp_path / "model"), tmp_path, precision)
    sizes = {**BUCKET, "tokens": 7, "frames": 3}
    bucket = {symbol: sizes[symbol] for symbol in Signature.read(graph.parent).symbols}
    (tmp_path / "plan").mkdir()
    report = build_plan(graph, PlanOptions("tensorrt-rtx", (bucket,)), tmp_path / "plan")
    real = {name: count for name, count in report.dtypes.items() if name in TYPES.values()}
    assert max(real, key=lambda kind: real[kind]) == TYPES[precision]
    assert set(real) <= {"FLOAT", TYPES[precision]}
    assert report.layers["MATRIX_MULTIPLY" if "MATRIX_MULTIPLY" in report.layers else "CONVOLUTION"] > 0


def test_a_plan_of_half_precision(half_decoder: Path, tmp_path: Path) -> None:
    options = PlanOptions("tensorrt-rtx", (BUCKET,), ("sm80", "sm89"))
    report = build_plan(half_decoder, options, tmp_path)
    assert PlanReport.read(tmp_path) == report
    assert Signature.read(tmp_path) == Signature.read(half_decoder.parent)
    assert report.bytes == (tmp_path / PLAN_FILE).stat().st_size > 10_000
    assert report.architectures == ("sm80", "sm89") and report.buckets == (BUCKET,)
    assert report.layers["CONVOLUTION"] >= 10 and report.layers["NORMALIZATION"] >= 8
    assert report.dtypes["HALF"] > 5 * report.dtypes["FLOAT"]  # fp32 only at the borders and in the softmax
    assert not any("tactic" in warning.lower() for warning in report.warnings)


def test_a_second_bucket_is_a_second_profile_and_costs_size(half_decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = build_plan(half_decoder, PlanOptions("tensorrt-rtx", (BUCKET,), ("sm89",)), tmp_path / "one")
    both = PlanOptions("tensorrt-rtx", (BUCKET, {**BUCKET, "batch": 4}), ("sm89",), weight_streaming=True)
    two = build_plan(half_decoder, both, tmp_path / "two")
    assert two.layers == one.layers and two.bytes > 1.2 * one.bytes


@pytest.mark.parametrize(
    ("bucket", "architectures", "message"),
    [
        ({"batch": 2}, (), r"differ in \['height', 'width'\]"),
        ({**BUCKET, "frames": 3}, (), r"differ in \['frames'\]"),
        (BUCKET, ("sm90",), "architecture 'sm90' is none of tensorrt-rtx, which has current, sm120"),
        (BUCKET, ("none",), "architecture 'none' is none of tensorrt-rtx"),
    ],
)
def test_what_cannot_be_asked_for(
    half_decoder: Path, tmp_path: Path, bucket: dict[str, int], architectures: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_plan(half_decoder, PlanOptions("tensorrt-rtx", (bucket,), architectures), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_memory_of_a_build_is_bounded(half_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt, limits = load_tensorrt("tensorrt-rtx"), dict[str, int]()
    build = trt.Builder.build_serialized_network

    def watched(builder: Any, network: Any, config: Any) -> Any:
        pools = trt.MemoryPoolType
        limits.update({pool.name: config.get_memory_pool_limit(pool) for pool in (pools.WORKSPACE, pools.TACTIC_DRAM)})
        return build(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", watched)
    options = PlanOptions("tensorrt-rtx", (BUCKET,), ("sm89",), memory_bytes=2**28)
    report = build_plan(half_decoder, options, tmp_path)
    assert limits == {"WORKSPACE": 2**28, "TACTIC_DRAM": 2**28} and report.bytes > 10_000
    assert 2**30 < PlanOptions("tensorrt", (BUCKET,)).memory_bytes < 2**34


def test_refitting_needs_a_gpu_and_says_so(half_decoder: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"tensorrt-rtx cannot build .*network\.onnx: .*CUDA"):
        build_plan(half_decoder, PlanOptions("tensorrt-rtx", (BUCKET,), refittable=True), tmp_path)


def test_what_is_no_graph_is_refused_with_the_parsers_words(half_decoder: Path, tmp_path: Path) -> None:
    Signature.read(half_decoder.parent).write(tmp_path)
    (tmp_path / "network.onnx").write_bytes(half_decoder.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match=r"tensorrt-rtx refuses .*network\.onnx: .*\w"):
        build_plan(tmp_path / "network.onnx", PlanOptions("tensorrt-rtx", (BUCKET,)), tmp_path)


@pytest.mark.parametrize(
    ("flavour", "buckets", "architectures", "message"),
    [
        ("tensorrt", (BUCKET,), ("sm90",), "mainline tensorrt builds for the GPU of its machine alone"),
        ("openvino", (BUCKET,), (), "flavour='openvino', expected one of tensorrt-rtx, tensorrt"),
        ("tensorrt-rtx", (), (), "buckets holds 0 sizes, expected 1 to 2"),
        ("tensorrt-rtx", (BUCKET,) * 3, (), "buckets holds 3 sizes, expected 1 to 2"),
    ],
)
def test_options_that_are_none(
    flavour: Flavour, buckets: tuple[dict[str, int], ...], architectures: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PlanOptions(flavour, buckets, architectures)


def test_a_flavour_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.plan.MODULES", {"tensorrt": ("tensorrt_of_nowhere",)})
    with pytest.raises(ValueError, match="tensorrt is not installed: there is no module tensorrt_of_nowhere"):
        load_tensorrt.__wrapped__("tensorrt")


def test_what_tensorrt_says_is_kept_by_severity() -> None:
    trt = load_tensorrt("tensorrt-rtx")
    logger = logger_of(trt)
    logger.target = BuildLog()
    for severity in (trt.ILogger.ERROR, trt.ILogger.WARNING, trt.ILogger.INFO):
        logger.log(severity, severity.name)
    assert (logger.target.errors, logger.target.warnings) == (["ERROR"], ["WARNING"])
