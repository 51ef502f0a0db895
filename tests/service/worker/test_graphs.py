"""When calls are captured, what is replayed, and what is kept; on a GPU tests/gpu asks for the bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.families.row import Denoiser
from service.worker import runner as runner_module
from service.worker.batch import Stage
from service.worker.graphs import Graphs, Inputs
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.runner import Runner
from tests.support.rig import make_request

SIZE = 100


class Played:
    """A graph that runs the call again, into a buffer that stays."""

    def __init__(self, network: Denoiser, inputs: Inputs, size: int) -> None:
        self.inputs, self.bytes = tuple(tensor.clone() for tensor in inputs), size
        self._network, self._output, self.replays = network, network(*self.inputs), 0

    def replay(self) -> Tensor:
        self.replays += 1
        return self._output.copy_(self._network(*self.inputs))


class Recorder:
    """Captures on the CPU, and remembers what."""

    def __init__(self, size: int = SIZE) -> None:
        self.size, self.error, self.made = size, "", list[Played]()

    def __call__(self, network: Denoiser, inputs: Inputs) -> Played:
        if self.error:
            raise torch.OutOfMemoryError(self.error)
        self.made.append(Played(network, inputs, self.size))
        return self.made[-1]

    @property
    def replays(self) -> list[int]:
        return [graph.replays for graph in self.made]


class Network:
    """Doubles x and adds its time; remembers how many lanes it was given."""

    def __init__(self) -> None:
        self.lanes: list[int] = []

    def __call__(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        self.lanes.append(len(x))
        return 2.0 * x + c_noise[:, None] + context.sum((1, 2))[:, None] + vector


def inputs_of(lanes: int, width: int = 3) -> Inputs:
    x = torch.arange(lanes * width, dtype=torch.float32).view(lanes, width)
    return x, torch.ones(lanes), torch.zeros(lanes, 1, 1), torch.zeros(lanes, width)


def call(graphs: Graphs, network: Network, lanes: int = 2, width: int = 3, version: str = "unet/1") -> None:
    """One call, whose result is compared with the network's own."""
    inputs = inputs_of(lanes, width)
    got = graphs.over({"unet": network}, "unet", version)["unet"](*inputs)
    assert torch.equal(got, Network()(*inputs)) and len(got) == lanes


def test_the_second_call_is_captured_and_the_third_replayed() -> None:
    record, network = Recorder(), Network()
    graphs = Graphs(record)
    call(graphs, network)
    assert not record.made and graphs.held_bytes == 0
    call(graphs, network)
    call(graphs, network)
    assert record.replays == [2] and graphs.held_bytes == SIZE


def test_lanes_are_filled_up_to_their_bucket_and_share_its_graph() -> None:
    record, network = Recorder(), Network()
    graphs = Graphs(record)
    for lanes in (3, 4, 3, 17, 17):
        call(graphs, network, lanes)
    assert network.lanes[0] == 4 and record.replays == [2], "three lanes and four have one graph"
    assert network.lanes[-2:] == [17, 17], "more than the largest bucket run as they are"


def test_a_result_is_not_overwritten_by_the_next_replay() -> None:
    graphs, network = Graphs(Recorder()), Network()
    call(graphs, network)
    run = graphs.over({"unet": network}, "unet", "unet/1")["unet"]
    first = run(*inputs_of(2))
    kept = first.clone()
    run(*(tensor + 1.0 for tensor in inputs_of(2)))
    assert torch.equal(first, kept)


def test_a_network_that_was_loaded_again_is_captured_again() -> None:
    record, network = Recorder(), Network()
    graphs = Graphs(record)
    for version in ("unet/1", "unet/1", "unet/2", "unet/2", "unet/2"):
        call(graphs, network, version=version)
    assert record.replays == [1, 2] and graphs.held_bytes == SIZE, "what held the old addresses is gone"


def test_shapes_that_were_not_seen_for_longest_are_forgotten() -> None:
    record, network = Recorder(), Network()
    graphs = Graphs(record, max_shapes=2)
    for width in (3, 3, 4, 4, 3, 5, 3, 4):
        call(graphs, network, width=width)
    assert record.replays == [3, 1] and graphs.held_bytes == SIZE


def test_memory_is_bounded() -> None:
    record, network = Recorder(), Network()
    graphs = Graphs(record, max_bytes=2 * SIZE)
    for width in (3, 4, 5, 3, 4, 5):
        call(graphs, network, width=width)
    assert len(record.made) == 3 and graphs.held_bytes == SIZE, "the third made room by dropping the pool"
    graphs.shrink()
    assert graphs.held_bytes == 0
    call(graphs, network, width=3)
    assert graphs.held_bytes == SIZE
    graphs.shrink()
    for _ in range(3):
        call(graphs, network, width=3)
    assert len(record.made) == 5 and graphs.held_bytes == 0, "one that is too large is not tried again"


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    record, network = Recorder(), Network()
    record.error = "CUDA out of memory"
    graphs = Graphs(record)
    for _ in range(3):
        call(graphs, network)
    record.error = ""
    call(graphs, network)
    assert not record.made and len(network.lanes) == 4


def test_networks_are_looked_up_as_before() -> None:
    over = Graphs(Recorder()).over({"unet": Network()}, "unet", "unet/1")
    assert list(over) == ["unet"] and len(over) == 1 and "refiner" not in over


def stepped(loaded: LoadedModel, runner: Runner, seed: int = 7) -> Picture:
    picture = Picture(make_request(num_inference_steps=4), seed, 0.0, loaded, loaded.strict)
    while picture.stage is not Stage.DECODE:
        runner.run(picture.stage, [picture])
    return picture


def test_rows_have_the_same_bytes_and_memory_is_given_back(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Recorder()
    monkeypatch.setattr(runner_module, "CudaCapture", lambda: record)
    graphed, runner = replace(loaded, graphs=True), Runner()
    plain, replayed = stepped(loaded, Runner()).row, stepped(graphed, runner)
    assert record.replays == [3], "the first of four steps ran as it is"
    assert plain is not None and replayed.row is not None and torch.equal(plain.state, replayed.row.state)

    tries: list[int] = []
    decode = Picture.decode

    def short_of_memory(pieces: list[Picture]) -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        decode(pieces)

    monkeypatch.setattr(Picture, "decode", short_of_memory)
    runner.run(Stage.DECODE, [replayed])
    assert len(tries) == 2 and replayed.pixels is not None
    tries.clear()
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(Stage.DECODE, [replayed])
