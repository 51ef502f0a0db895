"""The networks that ship with the project, on ONNX Runtime and OpenVINO: a row has the same bytes in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.call import Session, examples, outputs_of
from engines.export import export
from engines.networks import bucket, networks_of
from engines.openvino_session import OpenVinoSession
from engines.prepare import graph_key
from engines.session import OnnxSession
from models.spec.model import ModelSpec
from tests.support.openvino import openvino_is_installed

ZOO = Path(__file__).resolve().parents[2] / "models" / "zoo"
MOST = 16
ALWAYS = ("emoji-xl", "unet")
"""The one that `make test` exports."""


def shipped() -> list[Any]:
    """Model and name of every shipped network, of those with the same weights the first; all but one are slow."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for folder in sorted(path.parent for path in ZOO.glob("*/model_index.json")):
        for network in networks_of(folder).values():
            found.setdefault((network.name, graph_key(network).weights), (folder.name, network.name))
    return [pytest.param(*case, marks=() if case == ALWAYS else pytest.mark.slow) for case in found.values()]


@pytest.mark.timeout(900)  # an export: half a minute of one core, of a busy one minutes
@pytest.mark.parametrize(("model", "name"), shipped())
def test_a_row_has_the_same_bytes_in_every_batch_of_1_to_16(model: str, name: str, tmp_path: Path) -> None:
    spec, network = ModelSpec.read(ZOO / model), networks_of(ZOO / model)[name]
    inputs = examples(network.signature, bucket(network, spec, MOST, *spec.sizes[0]))
    graph = export(network.load(), network.signature, tmp_path)
    for open_session in (OnnxSession, *([OpenVinoSession] if openvino_is_installed() else [])):
        check_every_batch(open_session(graph, threads=1), inputs)


def check_every_batch(session: Session, inputs: Sequence[Tensor]) -> None:
    """Rows of ``inputs``, ``MOST`` of them, have the bytes that they have alone in batches of every size, where their
    places and neighbours are others each time."""
    alone = [outputs_of(session(*(tensor[i : i + 1] for tensor in inputs))) for i in range(MOST)]
    assert not any(torch.equal(alone[0][0], other[0]) for other in alone[1:]), "else equal bytes would say nothing"
    for lanes in range(1, MOST + 1):
        rows = torch.randperm(MOST, generator=torch.Generator().manual_seed(lanes))[:lanes]
        together = outputs_of(session(*(tensor[rows] for tensor in inputs)))
        for place, row in enumerate(rows.tolist()):
            assert all(torch.equal(got[place], own[0]) for got, own in zip(together, alone[row], strict=True)), lanes
