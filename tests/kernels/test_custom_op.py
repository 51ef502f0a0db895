"""The operators under torch's own checks, and networks that hold them under compile, export and ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kernels.attention import attention
from kernels.backend import OPS, chosen, selected
from kernels.custom_op import DECOMPOSITIONS
from kernels.temporal_conv import temporal_conv
from models.mmdit_blocks import JointBlock
from models.video_blocks import TemporalResnetBlock, VideoTransformer, clip_context
from tests.kernels.cases import CASES, Case

# One case of each operator, the first. Its launcher has the operator's arguments.
FIRST = {case.launch.__name__.removeprefix("launch_"): case for case in reversed(CASES)}

# And one with the inputs that the first leaves out.
CHECKED = [*FIRST.values(), next(case for case in CASES if "keeps" in case.name)]


def overload(op: str) -> Any:
    return getattr(torch.ops.darkroom, op).default


def test_every_op_is_an_operator() -> None:
    assert set(FIRST) == set(OPS)
    assert set(DECOMPOSITIONS) == {overload(op) for op in OPS}


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_operators_keep_their_word(case: Case) -> None:
    """Nothing is written that the schema does not say, and tracing sees the shape, dtype and strides of a run."""
    given = [_in_fp32(value) for value in case.inputs(torch.Generator().manual_seed(0))]
    op = case.launch.__name__.removeprefix("launch_")
    torch.library.opcheck(overload(op), tuple(given), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_on_a_cpu_operators_are_the_reference(case: Case) -> None:
    given = case.inputs(torch.Generator().manual_seed(0))
    result = overload(case.launch.__name__.removeprefix("launch_"))(*given)
    torch.testing.assert_close(result, case.reference(*given), rtol=1e-10, atol=1e-10)


class Clip(nn.Module):
    """A residual block over frames, and a transformer over pixels and frames."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = TemporalResnetBlock(32, 1e-5)
        self.transformer = VideoTransformer(32, 2, 1, 8)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, T, C, H, W], [B, N, 8] -> [B, T, C, H, W]."""
        result: Tensor = self.transformer(self.resnet(x), clip_context(context, 3, {32}))
        return result


class Joint(nn.Module):
    """A block of picture and text."""

    def __init__(self) -> None:
        super().__init__()
        self.block = JointBlock(32, 2, qk_norm=True)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, N, 32], [B, M, 32] -> [B, N, 32]."""
        result: Tensor = self.block(x, context, context[:, 0])[0]
        return result


def clip() -> tuple[nn.Module, tuple[Tensor, ...], set[str]]:
    x = torch.randn(2, 3, 4, 5, 32).movedim(-1, 2)
    ops = {"attention", "blend", "geglu", "group_norm", "temporal_attention", "temporal_resnet"}
    return Clip(), (x, torch.randn(2, 6, 8)), ops


def joint() -> tuple[nn.Module, tuple[Tensor, ...], set[str]]:
    ops = {"modulate", "gated_residual", "attention", "rms_norm"}
    return Joint(), (torch.randn(2, 5, 32), torch.randn(2, 7, 32)), ops


Make = Callable[[], tuple[nn.Module, tuple[Tensor, ...], set[str]]]


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("make", [clip, joint], ids=lambda make: make.__name__)
def test_networks_compile_whole(make: Make) -> None:
    torch.manual_seed(0)
    network, given, ops = make()
    seen: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _example: list[Tensor]) -> Callable[..., Any]:
        seen.update(_operators(graph))
        return graph.forward

    with torch.inference_mode():
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(*given), network(*given), rtol=1e-5, atol=1e-5)
    assert seen == ops
    assert {(op, "triton") for op in ops} <= set(chosen())


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export's own
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", [pytest.param(clip, marks=pytest.mark.slow), joint], ids=lambda make: make.__name__)
def test_exported_networks_decompose_into_torch_and_onnx(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, given, ops = make()
    with torch.no_grad():
        expected = network(*given)
        batch = Dim("batch", min=1)
        program = torch.export.export(network, given, dynamic_shapes=({0: batch}, {0: batch}), strict=False)
        assert _operators(program.graph_module) == ops
        torch.testing.assert_close(program.module()(*given), expected, rtol=1e-5, atol=1e-5)
        program = program.run_decompositions({**torch.export.default_decompositions(), **DECOMPOSITIONS})
    assert _operators(program.graph_module) == set()
    _check_onnx(program, given, expected, tmp_path)


class Libraries(nn.Module):
    """The ops that libraries have too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 1, 1) / 7.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 16, H, W] -> [B, T * H * W, 16]."""
        tokens = temporal_conv(x, self.weight, None).movedim(2, -1).flatten(1, -2).contiguous()
        return attention(tokens, tokens, tokens, 2)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export's own
@pytest.mark.timeout(600)
def test_networks_with_libraries_are_exported_as_standard_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Libraries(), torch.randn(2, 3, 4, 5, 16).movedim(-1, 2)
    with torch.no_grad():
        with selected({"attention": "torch", "temporal_conv": "torch"}):
            expected = network(x)
        with selected({"attention": "flash", "temporal_conv": "conv3d"}):
            program = torch.export.export(network, (x,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
        assert _operators(program.graph_module) == set()
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)
        program = program.run_decompositions()
    assert {("attention", "flash"), ("temporal_conv", "conv3d")} <= set(chosen())
    _check_onnx(program, (x,), expected, tmp_path)


def _check_onnx(program: ExportedProgram, given: tuple[Tensor, ...], expected: Tensor, folder: Path) -> None:
    """As ONNX it has standard operators alone, and computes the same."""
    import onnxruntime

    exported = torch.onnx.export(program, (), dynamo=True, opset_version=20, verbose=False)
    assert exported is not None
    exported.save(folder / "network.onnx")
    assert {node.domain for node in exported.model.graph.all_nodes()} <= {""}
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    names = [one.name for one in session.get_inputs()]
    result = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})[0]
    torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_a_network_is_traced_without_operators() -> None:
    network, given, _ = joint()
    with torch.no_grad():
        program = torch.export.export(network, given, strict=False)
    assert _operators(program.graph_module) == set()


def _operators(graph: torch.fx.GraphModule) -> set[str]:
    """Names of the operators of ours in it."""
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    return {target.split(".")[1] for target in targets if target.startswith("darkroom.")}


def _in_fp32(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_fp32(one) for one in value]
    return value.float() if isinstance(value, Tensor) else value
