"""What a build does in its process: makes the engines of some networks and tries each against torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from engines.call import Output, Session, examples
from engines.life import Built, Samples
from engines.maker import Maker
from engines.networks import Network
from engines.precision import TOLERANCE, TORCH_DTYPE
from engines.quantise import EIGHT_TOLERANCE
from engines.refused import Refusal, refusal_of, refuse
from engines.verdict import Remembered, Sample, Verdict, judge, timed, within

logger = logging.getLogger(__name__)

JUDGED_ON = 4
"""Samples of a network in 8 bits that it is judged on, where there are so many; an engine without scales is judged on
all."""


def build_and_judge(maker: Maker, names: Sequence[str], samples: Samples, limit_s: float) -> dict[str, Built]:
    """Work for :class:`engines.background.Background`: build the engines of these networks, and compare each with torch
    in fp32, to the tolerance of its precision, on inputs that occurred, and then with torch as it serves, in time. What
    is not accepted leaves the cache; what is only slower stays there, marked.

    Args:
        maker: of the engines.
        names: the networks'.
        samples: inputs that occurred. For a network without any, an engine of fixed shapes is compared on random
            inputs, and one of free shapes has only its export's own comparison. One in 8 bits has its scales from one
            half of them and is compared on the other.
        limit_s: how long an engine may take to be loaded, and for one of the inputs.

    Raises:
        ValueError: the model has no such network, or a file is missing.
    """
    torch.set_num_threads(maker.threads)
    torch.backends.cudnn.allow_tf32 = False  # the reference is exact
    if maker.device != "cpu":
        torch.cuda.set_device(maker.device)
    networks = maker.networks()
    if unknown := [name for name in names if name not in networks]:
        raise ValueError(f"network {unknown[0]!r} is none of {maker.folder.name}, which has {', '.join(networks)}")

    def one(name: str) -> Built:
        given = [tuple(torch.from_numpy(array) for array in sample) for sample in samples.get(name, ())]
        scaled_on, judged_on = given, given
        if networks[name].eight is not None and len(given) > 1:
            scaled_on, judged_on = given[::2], given[1::2][:: max(1, len(given) // (2 * JUDGED_ON))]
        try:
            path = maker.build(name, scaled_on)
        except RuntimeError as error:
            return Built(None, str(error))
        if (refusal := refusal_of(path.parent)) is not None:
            return Built.refused(refusal)
        verdict = _verdict(maker, networks[name], path, judged_on, limit_s)
        if verdict is None or verdict.accepted:
            return Built(path, verdict=verdict)
        if verdict.slower:
            refuse(path.parent, refusal := Refusal("slower", verdict.reason))
            return Built.refused(refusal, verdict)
        maker.discard(name, path)
        return Built(None, verdict.reason, verdict)

    return {name: one(name) for name in names}


def _verdict(maker: Maker, network: Network, path: Path, samples: Sequence[Sample], limit_s: float) -> Verdict | None:
    """The comparison with torch; None where there is nothing to compare on."""
    buckets = maker.buckets(path)
    if buckets is not None:
        lanes = [buckets.lanes_of([tensor.shape for tensor in sample]) for sample in samples]
        samples = [tuple(t[:count] for t in sample) for sample, count in zip(samples, lanes, strict=True) if count]
        samples = samples or [examples(network.signature, sizes) for sizes in buckets.sizes]
    if not samples:
        return None
    samples = [tuple(tensor.to(maker.device) for tensor in sample) for sample in samples]
    # Torch's weights are gone before the engine's come: a GPU that serves may not have room for both.
    reference = Remembered(network.load().to(maker.device), samples)
    torch.cuda.empty_cache()
    engine = within(limit_s, partial(_opened, maker, path))
    if isinstance(engine, str):
        return Verdict(False, engine, math.nan, 0.0, 0.0)
    precision = network.precision(maker.precision)
    tolerance = TOLERANCE[precision] if network.eight is None else EIGHT_TOLERANCE[network.eight]
    found = judge(engine, reference, samples, tolerance, limit_s, maker.rows_are_their_own)
    found = replace(found, torch_s=reference.seconds)
    # Who asks for 8 bits may want the memory: they are not refused for their time.
    if not found.accepted or network.eight is not None:
        return found
    if buckets is not None:  # which are filled up to their lanes, and so are strict rows on torch
        whole = [examples(network.signature, sizes) for sizes in buckets.sizes]
        samples = [tuple(tensor.to(maker.device) for tensor in sample) for sample in whole]
    try:
        return timed(found, engine, _serving(network, maker.device, TORCH_DTYPE[precision]), samples)
    except RuntimeError as error:  # as where the memory has no room for both: the engine's numbers are right
        logger.warning("an engine was not timed", extra={"network": network.name, "error": str(error)})
        return found


def _serving(network: Network, device: str, dtype: torch.dtype) -> Callable[..., Output]:
    """A network on torch in the precision in which it serves, called as an engine is."""
    module = network.load().to(device, dtype)

    def call(*inputs: torch.Tensor) -> Output:
        result: Output = module(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs))
        return result

    return call


def _opened(maker: Maker, path: Path) -> Session:
    if maker.device != "cpu":
        torch.cuda.set_device(maker.device)  # is per thread
    return maker.open(path)
