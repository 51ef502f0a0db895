"""The kernels on a GPU: every case of the interpreter again, larger ones, whole networks and batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.denoise_step import CASES as FORWARDS
from benchmarks.denoise_step import TORCH, on_gpu
from benchmarks.workloads import OPS, WORKLOADS, Workload, maker
from kernels.attention import launch_attention
from kernels.backend import chosen, selected
from kernels.group_norm_silu import launch_group_norm
from kernels.solver_step import launch_solver_step
from kernels.temporal_attention import launch_temporal_attention
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
