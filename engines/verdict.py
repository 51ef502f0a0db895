"""Whether an engine may take the place of torch: both on the same real inputs.

An engine may raise, answer nonsense or not answer at all. Each is a verdict, never an exception. A call that does not
come back cannot be ended from within, so an engine is judged in the process that built it, which can be.
"""

from __future__ import annotations

import math
import operator
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

import torch
from torch import Tensor

from engines.call import Output, outputs_of
from engines.verify import check_rows, largest_error

T = TypeVar("T")
Network = Callable[..., Output]
Sample = tuple[Tensor, ...]
"""The inputs of one call."""


SPREAD_LANES = 2
"""Of each call: one row's, with guidance. A step of a large model has megabytes a lane."""
ROUNDS = 7
MARGIN = 1.1
"""An engine is slower than torch where its median exceeds torch's by so much: the medians of the same network twice,
taken in turns, differ by a few hundredths on a busy machine."""


@dataclass(frozen=True)
class Verdict:
    """What came of the comparison."""

    accepted: bool
    reason: str
    """Why not; empty for an engine that was accepted."""
    error: float
    """The largest difference to torch over the largest output, of all samples; not a number where none was compared."""
    engine_s: float
    """Seconds that the engine took for all samples, one after the other."""
    torch_s: float
    slower: bool = False
    """Whether its numbers were accepted and its time was not."""


class Recorder:
    """A network that keeps copies of the inputs of its latest calls, as samples for a verdict; or of calls that are
    spread over all that there were, and of their first lanes alone, as samples for scales."""

    def __init__(self, network: Network, keep: int = 4, spread: bool = False) -> None:
        self._network, self._stopped, self._keep, self._spread = network, False, keep, spread
        self._kept: deque[Sample] = deque(maxlen=None if spread else keep)
        self._every = 1
        self.calls = 0
        """How many there were."""

    def __call__(self, *inputs: Tensor) -> Output:
        """As the network."""
        if not self._stopped and not _captured(inputs):
            if self.calls % self._every == 0:
                self._kept.append(tuple(t[: SPREAD_LANES if self._spread else None].clone() for t in inputs))
            if len(self._kept) > self._keep:
                self._kept, self._every = deque(list(self._kept)[::2]), 2 * self._every
            self.calls += 1
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
        got = within(limit_s, partial(engine, *inputs))
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
        fault = within(limit_s * (1 + len(samples[-1][0])), lambda: check_rows(engine, samples[-1]))
        return verdict(fault or "")
    return verdict()


def timed(verdict: Verdict, engine: Network, serving: Network, samples: Sequence[Sample]) -> Verdict:
    """An accepted engine's time against that of the network that serves without it: medians of rounds in turns, so that
    a load that comes and goes meets both; on the processor its own time, which others on the machine hardly change.

    Args:
        verdict: of its numbers.
        engine: as there.
        serving: torch in the precision in which it serves.
        samples: inputs that occurred, as each of the two takes them.
    """

    on_gpu = samples[0][0].is_cuda
    clock = time.perf_counter if on_gpu else time.process_time

    def once(network: Network) -> float:
        began = clock()
        with torch.inference_mode():
            for inputs in samples:
                network(*inputs)
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - began

    for network in (engine, serving):  # what is compiled or allocated at a first call is no part of it
        once(network)
    rounds = [(once(engine), once(serving)) for _ in range(ROUNDS)]
    engine_s, torch_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    slower = engine_s > MARGIN * torch_s
    reason = f"it takes {engine_s / torch_s:.2f} of torch's time" if slower else ""
    return replace(verdict, accepted=not slower, reason=reason, engine_s=engine_s, torch_s=torch_s, slower=slower)


def within(limit_s: float, call: Callable[[], T]) -> T | str:
    """What ``call`` returns; or, where it raises or takes longer than ``limit_s``, a sentence that says so. In the
    latter case it goes on in a thread of its own."""
    answers: Queue[T | str] = Queue()

    def ask() -> None:
        try:
            with torch.inference_mode():  # is per thread
                answers.put(call())
        except Exception as error:
            answers.put(f"it raised {type(error).__name__}: {error}")

    Thread(target=ask, daemon=True, name="engine under test").start()
    try:
        return answers.get(timeout=limit_s)
    except Empty:
        return f"it did not answer within {limit_s:g} s"
