"""The networks that ship with the project, on ONNX Runtime: a row has the same bytes in every batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.call import examples, outputs_of
from engines.export import export
from engines.networks import bucket, networks_of
from engines.prepare import graph_key
from engines.session import OnnxSession
from models.spec.model import ModelSpec

ZOO = Path(__file__).resolve().parents[2] / "models" / "zoo"
MOST = 16
ALWAYS = ("emoji-xl", "unet")
"""The one that `make test` exports."""


def shipped() -> list[Any]:
    """Model and name of every shipped network, of those with the same weights the first; all but one are slow."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for folder in sorted(path.parent for path in ZOO.glob("*/model_index.json")):
        for network in networks_of(folder).values():
            if not network.is_tower:
                found.setdefault((network.name, graph_key(network).weights), (folder.name, network.name))
    return [pytest.param(*case, marks=() if case == ALWAYS else pytest.mark.slow) for case in found.values()]


@pytest.mark.timeout(900)  # an export: half a minute of one core, of a busy one minutes
@pytest.mark.parametrize(("model", "name"), shipped())
def test_a_row_has_the_same_bytes_in_every_batch_of_1_to_16(model: str, name: str, tmp_path: Path) -> None:
    spec, network = ModelSpec.read(ZOO / model), networks_of(ZOO / model)[name]
    inputs = examples(network.signature, bucket(network, spec, MOST, *spec.sizes[0]))
    session = OnnxSession(export(network.load(), network.signature, tmp_path), threads=1)
    alone = [outputs_of(session(*(tensor[i : i + 1] for tensor in inputs)))[0][0] for i in range(MOST)]
    assert not any(torch.equal(alone[0], other) for other in alone[1:]), "else equal bytes would say nothing"
    for lanes in range(1, MOST + 1):
        rows = torch.randperm(MOST, generator=torch.Generator().manual_seed(lanes))[:lanes]
        together = outputs_of(session(*(tensor[rows] for tensor in inputs)))[0]
        assert all(torch.equal(got, alone[i]) for got, i in zip(together, rows.tolist(), strict=True)), lanes
