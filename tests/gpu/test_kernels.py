"""The kernels on a GPU: every case of the interpreter again, larger ones, whole networks and batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.denoise_step import CASES as FORWARDS
from benchmarks.denoise_step import TORCH, on_gpu
from benchmarks.ops import OPS
from benchmarks.workloads import WORKLOADS, Workload, maker
from kernels import tiles
from kernels.attention import attention, launch_attention
from kernels.backend import chosen, selected
from kernels.group_norm_silu import launch_group_norm
from kernels.launch import ARCHITECTURES, architecture
from kernels.solver_step import launch_solver_step
from kernels.temporal_attention import launch_temporal_attention
from kernels.temporal_conv import temporal_conv
from models.layout import channels_last
from models.video_blocks import TemporalResnetBlock
from tests.kernels.cases import CASES, TOLERANCES, Case, attention_case, conv_case, group_norm_case, resnet_case

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

LARGE = (
    attention_case(2, 1000, 1111, 5, 64),
    attention_case(1, 515, 515, 3, 128, causal=True),
    attention_case(1, 300, 77, 8, 160, packed=True),
    conv_case(2, 25, 144, 320, 640),
    resnet_case(2, 14, 130, 320, 32),
    group_norm_case(2, 10007, 640, 32),
)
RUNS_AS = {
    ("attention", "flash"): "aten::_scaled_dot_product_flash_attention",
    ("attention", "cudnn"): "aten::_scaled_dot_product_cudnn_attention",
    ("temporal_conv", "conv3d"): "aten::conv3d",
}
"""By op and library, the operator of torch that is it."""
FORWARD_LIMIT = 5e-2
"""Largest difference of a bf16 forward, relative to the largest output."""


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    case.check(dtype, "cuda")


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: f"{workload.op}, {workload.name}")
@torch.inference_mode()
def test_workloads_of_published_networks(workload: Workload) -> None:
    op, inputs = OPS[workload.op], workload.inputs(maker("cuda", torch.bfloat16))
    result, expected = op.launch(*inputs).float(), op.eager(*inputs).float()
    assert float((result - expected).abs().max() / expected.abs().max()) < 2e-2


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: f"{workload.op}, {workload.name}")
@torch.inference_mode()
def test_whatever_can_be_dispatched_computes_the_same(workload: Workload) -> None:
    op, inputs = OPS[workload.op], workload.inputs(maker("cuda", torch.bfloat16))
    expected = op.eager(*inputs).float()
    for name, call in op.choices.items():
        try:
            result = call(*inputs).float()
        except ValueError as error:
            assert (workload.op, name) in RUNS_AS and "does not take" in str(error)
            continue
        rows = result.movedim(2, -1).reshape(expected.shape) if result.shape != expected.shape else result
        assert float((rows - expected).abs().max() / expected.abs().max()) < 2e-2, name


@pytest.mark.parametrize(("op", "name"), list(RUNS_AS))
@torch.inference_mode()
def test_the_library_that_the_table_names_runs(op: str, name: str) -> None:
    """And another one where the table names that."""
    make, number = maker("cuda", torch.bfloat16), architecture(torch.device("cuda"))
    assert number is not None
    if op == "attention":
        kind, inputs, run = "d64", (make(2, 256, 320), make(2, 200, 320), make(2, 200, 320), 5), attention
    else:
        clip = make(1, 5, 8, 16, 64).movedim(-1, 2)
        kind, inputs, run = "thirds", (clip, make(64, 64, 3, 1, 1), make(64)), temporal_conv
    with selected({op: "torch"}):
        expected = run(*inputs)
    for backend in (name, "triton"):
        table = {ARCHITECTURES[number]: {op: {kind: {"backend": backend, "tile": 0}}}}
        with tiles.using(table), selected({op: "auto"}), torch.profiler.profile() as profile:
            result = run(*inputs)
        assert (op, backend) in chosen()
        assert (RUNS_AS[op, name] in {event.name for event in profile.events()}) == (backend == name)
        assert float((result - expected).abs().max() / expected.abs().max()) < 2e-2


@torch.inference_mode()
def test_a_library_falls_back_aloud(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(1, 130, 64, device="cuda")  # fp32, which neither library takes
    number = architecture(x.device)
    assert number is not None
    for name in ("flash", "cudnn"):
        table = {ARCHITECTURES[number]: {"attention": {"d64": {"backend": name, "tile": 0}}}}
        with tiles.using(table), selected({"attention": "auto"}), caplog.at_level("INFO", logger="kernels.backend"):
            attention(x, x, x, 1)
        assert f"runs on torch: {name} does not take 130 x 130" in caplog.text
        with selected({"attention": name}), pytest.raises(ValueError, match=f"{name} does not take"):
            attention(x, x, x, 1)


@pytest.mark.parametrize("name", ["torch", "flash", "cudnn", "triton"])
@torch.inference_mode()
def test_attention_compiles_with_every_choice(name: str) -> None:
    x = torch.randn(2, 256, 320, device="cuda", dtype=torch.bfloat16)
    with selected({"attention": name}):
        compiled: Tensor = torch.compile(lambda x: attention(x, x, x, 5), fullgraph=True)(x)
        expected = attention(x, x, x, 5)
    assert float((compiled - expected).abs().max() / expected.abs().max()) < 2e-2


@pytest.mark.parametrize("op", ["attention", "temporal_attention", "group_norm"])
@torch.inference_mode()
def test_a_row_has_the_same_bytes_at_every_place_of_a_batch(op: str) -> None:
    """At a fixed batch size; and here, since no tile depends on it, at every batch size."""
    make = maker("cuda", torch.bfloat16)
    if op == "attention":
        tensors = [make(8, 200, 320) for _ in range(3)]
        run = lambda *given: launch_attention(*given, 5, False)  # noqa: E731
    elif op == "temporal_attention":
        tensors = [make(8, 14, 30, 320) for _ in range(3)]
        run = lambda *given: launch_temporal_attention(*given, 5)  # noqa: E731
    else:
        tensors = [make(8, 5000, 320)]
        weight, bias = make(320), make(320)
        run = lambda x: launch_group_norm(x, weight, bias, 32, 1e-5, True)  # noqa: E731
    whole = run(*tensors)
    assert torch.equal(run(*(tensor.flip(0) for tensor in tensors)).flip(0), whole)
    for i in (0, 7):
        assert torch.equal(run(*(tensor[i : i + 1].contiguous() for tensor in tensors))[0], whole[i])
    assert not torch.equal(whole[0], whole[1])


@torch.inference_mode()
def test_a_row_of_the_solver_has_the_same_bytes_beside_other_kinds() -> None:
    """Alone, in larger batches, and beside rows that keep a part of a picture."""
    make, shape = maker("cuda", torch.bfloat16), (4, 33, 40)
    state, outputs = make(8, 3, *shape, full=True), make(8, 2, *shape)
    numbers = [make(8, *rest, full=True) for rest in ((2,), (), (), (3, 3), (3,), (), shape)]
    mask, kept, level = make(8, 1, *shape[1:], full=True), make(8, 2, *shape, full=True), make(8, 2, full=True)
    mask[:4], kept[:4], level[:4] = 1.0, 0.0, 0.0
    inputs = [state, outputs, *numbers]
    without, whole = launch_solver_step(*inputs), launch_solver_step(*inputs, mask, kept, level)
    assert torch.equal(without[:4].view(torch.int32), whole[:4].view(torch.int32))
    for i in range(8):
        last = [mask, kept, level] if i >= 4 else []
        alone = launch_solver_step(*(tensor[i : i + 1].contiguous() for tensor in [*inputs, *last]))
        assert torch.equal(alone[0].view(torch.int32), whole[i].view(torch.int32))
        assert i < 4 or not torch.equal(without[i, 0], whole[i, 0])


@torch.inference_mode()
def test_a_row_of_the_solver_has_the_same_bytes_without_its_padding() -> None:
    """A history of zeros and a lane of weight 0 change nothing, though the kernel is compiled again for them."""
    make, shape = maker("cuda", torch.bfloat16), (4, 33, 40)
    state, outputs = make(2, 3, *shape, full=True), make(2, 3, *shape)
    weights, c_skip, c_out, a, b, s = (make(2, *rest, full=True) for rest in ((3,), (), (), (3, 3), (3,), ()))
    noise = make(2, *shape, full=True)
    state[0, 1:], outputs[0, 2:], weights[0, 2:], b[0, 1:] = 0.0, 0.0, 0.0, 0.0
    a[0, 1:], a[0, :, 1:] = 0.0, 0.0
    padded = launch_solver_step(state, outputs, weights, c_skip, c_out, a, b, s, noise)
    cut = [state[:1, :1], outputs[:1, :2], weights[:1, :2], c_skip[:1], c_out[:1], a[:1, :1, :1], b[:1, :1], s[:1]]
    alone = launch_solver_step(*cut, noise[:1])
    assert torch.equal(alone[0, 0].view(torch.int32), padded[0, 0].view(torch.int32))


@pytest.mark.parametrize("case", FORWARDS, ids=lambda case: case.name)
@torch.inference_mode()
def test_forwards_with_kernels_are_those_of_torch(case: object) -> None:
    torch.manual_seed(0)
    network = on_gpu(case.make())
    channels_last(network)
    inputs = case.inputs("cuda")
    with selected(TORCH):
        expected = network(*inputs)
    with selected({**dict.fromkeys(TORCH, "auto"), "attention": "triton"}):
        result = network(*inputs)
    assert ("attention", "triton") in chosen()
    assert float((result - expected).abs().max() / expected.abs().max()) < FORWARD_LIMIT


@torch.inference_mode()
def test_a_compiled_block_runs_kernels() -> None:
    block = on_gpu(TemporalResnetBlock(320, 1e-5))
    channels_last(block)
    x = torch.randn(2, 14, 16, 9, 320, device="cuda", dtype=torch.bfloat16).movedim(-1, 2)
    with selected({"temporal_resnet": "triton"}):
        compiled: Tensor = torch.compile(block, fullgraph=True)(x)
        assert torch.equal(compiled, block(x))
    with selected(TORCH):
        assert float((compiled - block(x)).abs().max() / compiled.abs().max()) < 2e-2
