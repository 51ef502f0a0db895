"""The call of a session on OpenVINO, and the promise that a row's bytes are its own."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.cache import EngineCache
from engines.call import examples
from engines.openvino_session import BLOB_FILE, OpenVinoSession, compile_graph, load_openvino, openvino_numerics
from engines.prepare import build
from engines.session import OnnxSession
from engines.verify import largest_error
from tests.support.openvino import needs_openvino

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes


@pytest.fixture(scope="session")
def graphs(sdxl_folder: Path, cache: EngineCache) -> dict[str, Path]:
    return build(sdxl_folder, cache)


@pytest.fixture(scope="session")
def unet(graphs: dict[str, Path]) -> OpenVinoSession:
    return OpenVinoSession(graphs["unet"], threads=1)


def inputs_of(session: OpenVinoSession, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    sizes = {"batch": batch, "height": 4, "width": 3, "tokens": 7}
    return examples(session.signature, {symbol: sizes[symbol] for symbol in session.signature.symbols}, seed)


@needs_openvino
@pytest.mark.parametrize("name", ["unet", "vae/decoder", "vae/encoder"])
def test_it_computes_what_onnx_runtime_does(graphs: dict[str, Path], name: str) -> None:
    session, reference = OpenVinoSession(graphs[name], threads=1), OnnxSession(graphs[name], threads=1)
    inputs = inputs_of(session, 3)
    before = [tensor.clone() for tensor in inputs]
    assert largest_error(session(*inputs), reference(*inputs)) <= 1e-5
    assert all(map(torch.equal, inputs, before))
    assert largest_error(session(*inputs_of(session, 3, seed=1)), reference(*inputs)) > 0.01


@needs_openvino
@pytest.mark.parametrize("name", ["unet", "vae/decoder", "vae/encoder"])
def test_a_row_has_the_same_bytes_in_every_batch_and_on_two_threads(graphs: dict[str, Path], name: str) -> None:
    session, of_two = OpenVinoSession(graphs[name], threads=1), OpenVinoSession(graphs[name], threads=2)
    row, other = inputs_of(session, 1, seed=1), inputs_of(session, 1, seed=2)
    alone = session(*row)[0]
    assert not torch.equal(session(*other)[0], alone)  # else equal bytes would say nothing
    for batch in range(1, 17):
        stacked = inputs_of(session, batch, seed=10 + batch)
        for tensor, own in zip(stacked, row, strict=True):
            tensor[batch // 2] = own[0]
        for one in (session, of_two):
            assert torch.equal(one(*stacked)[batch // 2], alone), batch


@needs_openvino
def test_a_compiled_graph_is_the_graph(graphs: dict[str, Path], unet: OpenVinoSession, tmp_path: Path) -> None:
    compiled = compile_graph(graphs["unet"], tmp_path)
    session, inputs = OpenVinoSession(compiled, threads=1), inputs_of(unet, 2)
    assert compiled == tmp_path / BLOB_FILE and session.signature == unet.signature
    assert torch.equal(session(*inputs), unet(*inputs))
    assert session.numerics == unet.numerics == openvino_numerics(compiled)
    assert unet.numerics.startswith("openvino-2") and unet.numerics.endswith("/any")
    assert openvino_numerics(graphs["vae/decoder"]) != unet.numerics
    compiled.write_bytes(compiled.read_bytes()[:1000])
    with pytest.raises(RuntimeError):
        OpenVinoSession(compiled, threads=1)


@needs_openvino
def test_inputs_of_any_layout_and_of_other_sizes(unet: OpenVinoSession) -> None:
    inputs = inputs_of(unet, 3)
    strided = [tensor.repeat_interleave(2, dim=0)[::2] for tensor in inputs]
    assert torch.equal(unet(*strided), unet(*inputs))
    beside = [torch.cat([tensor[:1], tensor])[1:] for tensor in inputs]  # not where the allocator aligns to
    assert torch.equal(unet(*beside), unet(*inputs))
    watched = [tensor.requires_grad_() for tensor in inputs_of(unet, 3)]
    assert torch.equal(unet(*watched), unet(*inputs))
    x, times, context, vector = inputs
    assert unet(x[..., :2], times, context[:, :1], vector).shape == (*x.shape[:-1], 2)


@needs_openvino
def test_results_are_tensors_of_their_own_on_every_thread(unet: OpenVinoSession) -> None:
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda seed: unet(*inputs_of(unet, 2, seed)), range(8)))
    for seed, output in enumerate(outputs):
        assert torch.equal(output, unet(*inputs_of(unet, 2, seed)))


@needs_openvino
def test_wrong_inputs_are_refused_before_anything_runs(unet: OpenVinoSession) -> None:
    x, *others = inputs_of(unet, 2)
    with pytest.raises(TypeError, match=r"expected 4 tensors \(x, c_noise, context, vector\), got 1"):
        unet(x)
    with pytest.raises(ValueError, match=r"x has shape .*, expected \(batch, 4, 2\*height, 2\*width\)"):
        unet(x[:, :3], *others)


@needs_openvino
def test_the_library_tells_nobody_that_it_was_imported() -> None:
    load_openvino()
    assert sys.modules["openvino_telemetry"] is None  # type: ignore[comparison-overlap]
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__.endswith("telemetry_stub")


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("engines.openvino_session.version", version)
    with pytest.raises(ValueError, match=r"OpenVINO is not installed: pip install 'darkroom\[openvino\]'"):
        OpenVinoSession(tmp_path / "network.onnx", threads=1)
