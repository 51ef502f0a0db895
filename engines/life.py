"""The life of a model's engines: torch serves at once, engines take over when they were built and accepted, and torch
again when one fails. No threads, no clock: whoever owns it calls :meth:`EngineLife.look` now and then.

What it says holds for rows that *begin*. Rows in flight keep the networks that they began with, and finish under their
numerics.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engines.background import Done
from engines.call import Output, Session, outputs_of
from engines.maker import Maker
from engines.refused import Refusal, Watch
from engines.verdict import Network, Recorder, Sample, Verdict

logger = logging.getLogger(__name__)

State = Literal["building", "engine", "slower", "rejected", "dropped"]
"""``building``: the engine is not there yet; ``slower``: it is right, and torch is faster; ``rejected``: it was not
built or not accepted, or did not answer when it was last used; ``dropped``: it failed in service. Torch serves in all
but ``engine``."""
SCALES_FROM = 32
"""Calls whose inputs are kept for the scales of 8 bits."""
HUNG_S = 40.0
"""For one call in service. A watchdog allows a batch, which may be some calls, a minute at least."""
Samples = Mapping[str, list[tuple[NDArray[np.generic], ...]]]
"""Inputs that occurred, by the network's name; none for one that was not called yet."""


class EngineFailed(Exception):
    """An engine did not do its work; the cause is chained. Torch does it for rows that begin from now on."""


@dataclass(frozen=True)
class Built:
    """What came of one network's engine."""

    path: Path | None
    """Its file; None when it was not built or not accepted."""
    fault: str = ""
    """Why not."""
    verdict: Verdict | None = None
    """The comparison with torch on inputs that occurred; None where none was made."""
    slower: bool = False
    """Whether time is all that is against it."""

    @classmethod
    def refused(cls, refusal: Refusal, verdict: Verdict | None = None) -> Built:
        """That of an engine that lies in the cache and is not to be taken."""
        return cls(None, refusal.reason, verdict, refusal.state == "slower")


class Build(Protocol):
    """A build under way; :class:`engines.background.Background`."""

    def poll(self) -> Done[dict[str, Built]] | None: ...

    def stop(self) -> None: ...


Begin = Callable[[Sequence[str], Samples], Build]
"""Begins to build the networks of these names, to be judged on these samples."""


def blames_the_call(error: Exception) -> bool:
    """Whether an error is the caller's: inputs that the network does not take."""
    return isinstance(error, TypeError | ValueError)


class EngineLife:
    """The engines of one model."""

    def __init__(
        self, built: Mapping[str, Built], missing: Sequence[str] = (), begin: Begin | None = None,
        awaited: Mapping[str, int] | None = None, excused: Callable[[Exception], bool] = blames_the_call,
        maker: Maker | None = None, hung_s: float = HUNG_S,
    ) -> None:  # fmt: skip
        """
        Args:
            built: networks whose engine is there, or is known not to come.
            missing: networks whose engine is to be built.
            begin: builds them; None: they stay on torch.
            awaited: how often some of ``missing`` must have been called before, so that there are inputs to judge on.
            excused: tells errors that say nothing against an engine that raises them.
            maker: what the engines are of; None: there are none.
            hung_s: how long a call of an engine may take; one that takes longer, and does not come back before its
                process ends, is the last of this engine.
        """
        self.maker = maker
        self._begin, self._awaited, self._excused = begin, dict(awaited or {}), excused
        networks = {} if maker is None or not missing else maker.networks()
        self._eight = {name for name in missing if name in networks and networks[name].eight is not None}
        self._watch = Watch(hung_s)
        self._recorders: dict[str, list[Recorder]] = {}
        self._build: Build | None = None
        self._paths: dict[str, Path] = {}
        self.states: dict[str, State] = dict.fromkeys(missing, "building") if begin is not None else {}
        """By the network's name; one that is not here stays on torch and nothing is done about it."""
        self.reasons: dict[str, str] = {}
        """Why torch serves, of those rejected or dropped."""
        self.verdicts: dict[str, Verdict] = {}
        self.build_s = 0.0
        for name, one in built.items():
            self._take(name, one)

    @property
    def paths(self) -> Mapping[str, Path]:
        """The engines that a new row runs on, by the network's name."""
        return dict(self._paths)

    @property
    def waits(self) -> bool:
        """Whether a build could begin now: there is something to build, and inputs to judge it on."""
        pending = "building" in self.states.values() and self._build is None
        return pending and all(self._calls(name) >= count for name, count in self._awaited.items())

    @property
    def builds(self) -> bool:
        """Whether a build is under way."""
        return self._build is not None

    def recorded(self, name: str, network: Network) -> Network:
        """A network on torch, whose inputs are kept as long as they are of use to judge its engine on."""
        if self.states.get(name) != "building" or self._build is not None:
            return network
        recorder = Recorder(network, SCALES_FROM, spread=True) if name in self._eight else Recorder(network)
        self._recorders.setdefault(name, []).append(recorder)
        return recorder

    def guarded(self, name: str, engine: Network) -> Network:
        """An engine in service, which is dropped at the first sign that it does not do its work: an error that its
        caller is not to blame for, or an output that holds no numbers. One that does not answer is marked, so that the
        process that follows this one does not take it.

        Raises:
            EngineFailed: by the call.
        """

        entry = self._paths[name].parent

        def call(*inputs: torch.Tensor) -> Output:
            try:
                with self._watch.call(entry):
                    result = engine(*inputs)
                    # One that is no number makes the sum none; and this waits for the device.
                    sound = all(math.isfinite(output.sum()) for output in outputs_of(result))
            except Exception as error:
                if self._excused(error):
                    raise
                self._fall(name, "dropped", f"{type(error).__name__}: {error}")
                raise EngineFailed(f"the engine of {name} failed: {error}") from error
            if not sound:
                self._fall(name, "dropped", "its output holds what is no number")
                raise EngineFailed(f"the output of the engine of {name} holds what is no number")
            return result

        return call

    def load(self, name: str, path: Path, maker: Maker) -> Session:
        """The engine of a network, which is dropped if it cannot be loaded.

        Raises:
            EngineFailed: whatever the reason.
        """
        try:
            return maker.open(path)
        except Exception as error:
            self._fall(name, "dropped", f"{type(error).__name__}: {error}")
            raise EngineFailed(f"the engine of {name} cannot be loaded: {error}") from error

    def calibrates(self, name: str) -> bool:
        """Whether calls of a network on torch are kept for the scales of 8 bits; replays of a CUDA graph are none."""
        return name in self._eight and self.states.get(name) == "building"

    def begin(self) -> None:
        """Begin the build, if it can begin now."""
        if not self.waits or self._begin is None:
            return
        missing = [name for name, state in self.states.items() if state == "building"]
        samples = {name: [tuple(map(_plain, sample)) for sample in self._samples(name)] for name in missing}
        self._build = self._begin(missing, samples)
        for recorder in (one for recorders in self._recorders.values() for one in recorders):
            recorder.stop()
        self._recorders.clear()

    def look(self) -> bool:
        """Take over what was built and accepted; whether new rows run on anything else than before."""
        if self._build is None or (done := self._build.poll()) is None:
            return False
        self._build, self.build_s = None, done.seconds
        before, calibrated = len(self._paths), any(map(self.calibrates, self.states))
        for name in [name for name, state in self.states.items() if state == "building"]:
            self._take(name, Built(None, done.fault) if done.value is None else done.value[name])
        return calibrated or len(self._paths) > before

    def stop(self) -> None:
        """End a build that is under way."""
        self._watch.stop()
        if self._build is not None:
            self._build.stop()

    def _calls(self, name: str) -> int:
        return sum(recorder.calls for recorder in self._recorders.get(name, []))

    def _samples(self, name: str) -> list[Sample]:
        """Inputs that occurred; of a variant that was not called, those of its network."""
        found = [sample for recorder in self._recorders.get(name, []) for sample in recorder.samples]
        whole, _, variant = name.partition("/")
        return found or (self._samples(whole) if variant else [])

    def _take(self, name: str, built: Built) -> None:
        if built.verdict is not None:
            self.verdicts[name] = built.verdict
        if built.path is None:
            self._fall(name, "slower" if built.slower else "rejected", built.fault)
            return
        self.states[name], self._paths[name] = "engine", built.path
        logger.info("an engine is in service", extra={"network": name, "path": str(built.path)})

    def _fall(self, name: str, state: State, reason: str) -> None:
        self._paths.pop(name, None)
        self.states[name], self.reasons[name] = state, reason
        logger.warning("a network has no engine", extra={"network": name, "state": state, "reason": reason})


def _plain(tensor: torch.Tensor) -> NDArray[np.generic]:
    """On the processor, and in fp32 where it is real: what an engine is given."""
    array: NDArray[np.generic] = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array
