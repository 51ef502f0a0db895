"""Whether an engine may take the place of torch: both on the same real inputs.

An engine may raise, answer nonsense or not answer at all. Each is a verdict, never an exception. A call that does not
come back cannot be ended from within, so an engine is judged in the process that built it, which can be.
"""

from __future__ import annotations

import math
import operator
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread

import torch
from torch import Tensor

from engines.call import Output, outputs_of
from engines.verify import check_rows, largest_error

Network = Callable[..., Output]
Sample = tuple[Tensor, ...]
"""The inputs of one call."""


@dataclass(frozen=True)
class Verdict:
    """What came of the comparison."""

    accepted: bool
    reason: str
    """Why not; empty for an engine that was accepted."""
    error: float
    """The largest difference to torch over the largest output, of all samples; not a number where none was compared."""
    engine_s: float
    """Seconds that the engine took for all samples."""
    torch_s: float


class Recorder:
    """A network that keeps copies of the inputs of its latest calls, as samples for a verdict."""

    def __init__(self, network: Network, keep: int = 4) -> None:
        self._network, self._stopped = network, False
        self._kept: deque[Sample] = deque(maxlen=keep)

    def __call__(self, *inputs: Tensor) -> Output:
        """As the network."""
        if not self._stopped and not _captured(inputs):
            self._kept.append(tuple(tensor.clone() for tensor in inputs))
        return self._network(*inputs)

    def stop(self) -> None:
        """Let go of what was kept, and keep no more."""
        self._stopped = True
        self._kept.clear()

    @property
    def samples(self) -> list[Sample]:
        """The inputs of the latest calls, the oldest first."""
        return list(self._kept)


class Remembered:
    """A network's answers to some samples, so that it can leave the memory before they are asked for."""

    def __init__(self, network: Network, samples: Sequence[Sample]) -> None:
        began = time.perf_counter()
        with torch.inference_mode():
            self._answers = [(sample, network(*sample)) for sample in samples]
        self.seconds = time.perf_counter() - began
        """What they took together."""

    def __call__(self, *inputs: Tensor) -> Output:
        """The answer to one of the samples, by the very tensors that it consists of."""
        return next(answer for sample, answer in self._answers if all(map(operator.is_, sample, inputs)))


def _captured(inputs: Sequence[Tensor]) -> bool:
    """Whether a call is being captured as a CUDA graph, in whose memory copies would lie that a replay overwrites."""
    return inputs[0].is_cuda and torch.cuda.is_current_stream_capturing()


def judge(
    engine: Network, reference: Network, samples: Sequence[Sample], tolerance: float, limit_s: float,
    rows_are_their_own: bool = False,
) -> Verdict:  # fmt: skip
    """Run ``engine`` and ``reference`` on every sample.

    Args:
        engine: the candidate.
        reference: torch.
        samples: inputs that occurred.
        tolerance: the largest accepted difference over the largest output.
        limit_s: how long the engine may take for one sample.
        rows_are_their_own: whether the engine promises that a row has the same bytes in every batch.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("an engine cannot be judged without samples")
    worst, engine_s, torch_s = 0.0, 0.0, 0.0

    def verdict(reason: str = "") -> Verdict:
        return Verdict(not reason, reason, worst, engine_s, torch_s)

    for inputs in samples:
        began = time.perf_counter()
        with torch.inference_mode():
            expected = reference(*inputs)
        torch_s += time.perf_counter() - began
        began = time.perf_counter()
        got = _answer(engine, inputs, limit_s)
        engine_s += time.perf_counter() - began
        if isinstance(got, str):
            worst = math.nan
            return verdict(got)
        if [t.shape for t in outputs_of(got)] != [t.shape for t in outputs_of(expected)]:
            worst = math.nan
            return verdict("its outputs have other shapes than torch's")
        error = largest_error(got, expected)
        worst = error if math.isnan(error) else max(worst, error)
        if not error <= tolerance:
            return verdict(f"its largest error is {error:.1e} of the largest output, tolerated is {tolerance:.1e}")
    if rows_are_their_own:
        try:
            check_rows(engine, samples[-1])
        except RuntimeError as error:
            return verdict(str(error))
    return verdict()


def _answer(engine: Network, inputs: Sample, limit_s: float) -> Output | str:
    """What the engine answers, or why it does not."""
    answers: Queue[Output | str] = Queue()

    def ask() -> None:
        try:
            with torch.inference_mode():  # is per thread
                answers.put(engine(*inputs))
        except Exception as error:
            answers.put(f"it raised {type(error).__name__}: {error}")

    Thread(target=ask, daemon=True, name="engine under test").start()
    try:
        return answers.get(timeout=limit_s)
    except Empty:
        return f"it did not answer within {limit_s:g} s"
