"""Plans on a GPU: the numbers, CUDA graphs, padding, and which flavour runs on this card.

A flavour that does not run here is skipped with its own words, so that the summary of a run says what works.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.cache import EngineCache
from engines.call import examples, outputs_of
from engines.export import export
from engines.networks import Network, networks_of
from engines.plan import MODULES, PLAN_FILE, Flavour, PlanOptions, build_plan
from engines.plan_session import PlanSession
from engines.precision import TOLERANCE, Precision
from engines.prepare import build_served
from engines.quantise import EIGHT_TOLERANCE
from engines.refit import refit_plan
from engines.session import OnnxSession
from engines.verdict import judge
from engines.verify import largest_error
from models.spec.model import Eight
from tests.support.tiny_xl import write_tiny_xl

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
BUCKET = {"batch": 4, "height": 8, "width": 8, "tokens": 20}
TARGETS = {
    "tensorrt-rtx, its default list": PlanOptions("tensorrt-rtx", (BUCKET,)),
    "tensorrt-rtx, this card": PlanOptions("tensorrt-rtx", (BUCKET,), ("current",)),
    "tensorrt": PlanOptions("tensorrt", (BUCKET,)),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tmp_path_factory.mktemp("model") / "tiny-xl"
    write_tiny_xl(folder)
    return networks_of(folder)["unet"]


@pytest.fixture(scope="module", params=["fp16", "bf16", "fp32"])
def graph(request: pytest.FixtureRequest, network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(network.load(), network.signature, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(params=TARGETS)
def plan(request: pytest.FixtureRequest, graph: Path, tmp_path: Path) -> Path:
    card = torch.cuda.get_device_name()
    try:
        build_plan(graph, TARGETS[request.param], tmp_path)
        PlanSession(tmp_path / PLAN_FILE, graphs=False)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"{request.param} on {card}: {error}")
    return tmp_path / PLAN_FILE


def inputs_of(network: Network, lanes: int, seed: int) -> tuple[torch.Tensor, ...]:
    return tuple(t.cuda() for t in examples(network.signature, {**BUCKET, "batch": lanes}, seed))


def test_a_plan_computes_what_torch_does_and_a_graph_changes_no_byte(network: Network, graph: Path, plan: Path) -> None:
    precision: Precision = next(p for p in TOLERANCE if graph.parent.name.startswith(p))
    reference = network.load().cuda()
    eager, captured = PlanSession(plan, graphs=False), PlanSession(plan)
    samples = [inputs_of(network, 4, seed) for seed in range(3)]
    assert judge(captured, reference, samples, TOLERANCE[precision], limit_s=60.0).reason == ""
    for inputs in samples:
        first, second = outputs_of(eager(*inputs))[0], outputs_of(captured(*inputs))[0]
        assert torch.equal(first, second)
    assert largest_error(captured(*samples[0]), reference(*samples[1])) > TOLERANCE[precision]


def test_fewer_lanes_are_filled_up_and_keep_their_bytes(network: Network, plan: Path) -> None:
    session = PlanSession(plan)
    assert session.numerics.endswith("/fixed-4")
    inputs = inputs_of(network, 4, seed=0)
    whole = outputs_of(session(*inputs))[0]
    for lanes in (1, 3):
        part = outputs_of(session(*(tensor[:lanes] for tensor in inputs)))[0]
        assert part.shape[0] == lanes and torch.equal(part, whole[:lanes])
    with pytest.raises(ValueError, match="fit no bucket of this plan"):
        session(*inputs_of(network, 5, seed=0))


def test_results_are_in_order_with_the_callers_stream(network: Network, plan: Path) -> None:
    session, inputs = PlanSession(plan), inputs_of(network, 4, seed=0)
    expected = outputs_of(session(*inputs))[0].clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = tuple(torch.zeros_like(tensor) for tensor in inputs)
        torch.cuda._sleep(10**8)  # long enough for a call that does not wait to read zeros
        for empty, tensor in zip(late, inputs, strict=True):
            empty.copy_(tensor)
        got = outputs_of(session(*late))[0] * 1.0
    stream.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("flavour", MODULES)
def test_a_plan_with_other_weights(network: Network, tmp_path: Path, flavour: Flavour) -> None:
    """As for a set of adapters: all that a set changes is weights."""
    (base, changed), folders = (
        (network.load(), network.load()),
        [tmp_path / n for n in ("base", "set", "plan", "refitted")],
    )
    for parameter in changed.parameters():
        parameter.data.mul_(1.0 + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for folder in folders:
        folder.mkdir()
    graphs = [export(one, network.signature, folder) for one, folder in zip((base, changed), folders, strict=False)]
    architectures = ("current",) if flavour == "tensorrt-rtx" else ()
    try:
        build_plan(graphs[0], PlanOptions(flavour, (BUCKET,), architectures, refittable=True), folders[2])
        refit_plan(folders[2] / PLAN_FILE, graphs[1], folders[3])
        sessions = [PlanSession(folder / PLAN_FILE) for folder in folders[2:]]
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"{flavour} on {torch.cuda.get_device_name()}: {error}")
    inputs, tolerance = inputs_of(network, 4, seed=0), TOLERANCE["fp32"]
    references = [one.cuda()(*inputs) for one in (base, changed)]
    assert largest_error(references[1], references[0]) > 10 * tolerance, "else nothing would be seen"
    for session, reference in zip(sessions, references, strict=True):
        assert largest_error(session(*inputs), reference) <= tolerance
    assert sessions[0].numerics != sessions[1].numerics
    with pytest.raises(RuntimeError):
        refit_plan(folders[2] / PLAN_FILE, tmp_path / "no such graph.onnx", tmp_path)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("flavour", MODULES)
def test_8_bits_in_half_precision(
    network: Network, tmp_path: Path, flavour: Flavour, precision: Precision, kind: Eight
) -> None:
    eight, cache = replace(network, eight=kind), EngineCache(tmp_path / "cache")
    samples = [tuple(tensor.cpu() for tensor in inputs_of(network, 4, seed)) for seed in range(4)]
    try:
        graph = build_served(eight, cache, precision, samples)
        build_plan(graph, PlanOptions(flavour, (BUCKET,)), tmp_path)
        session = PlanSession(tmp_path / PLAN_FILE)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"{flavour} on {torch.cuda.get_device_name()}: {error}")
    inputs = inputs_of(network, 4, seed=9)
    assert largest_error(session(*inputs), network.load().cuda()(*inputs)) <= EIGHT_TOLERANCE[kind]


def test_onnx_runtime_on_cuda(network: Network, graph: Path) -> None:
    try:
        session = OnnxSession(graph, threads=1, device="cuda")
    except ValueError as error:
        pytest.skip(str(error))
    inputs = inputs_of(network, 4, seed=0)
    assert largest_error(session(*inputs), network.load().cuda()(*inputs)) <= TOLERANCE["bf16"]
