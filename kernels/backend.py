"""Which implementation an op runs: its Triton kernel, torch's own operators, or a library that torch can be told to.

CPU tensors always take torch, and no kernel runs where gradients are needed: the kernels have none. For CUDA tensors
each op has a switch. ``auto`` runs what was measured to be the fastest on that architecture and shape class; where
nothing was measured, the kernel, except for ops that a vendor's library has too; and torch where the inputs do not suit
that. Any other setting names an implementation, and inputs that it does not take are then an error, never another path.
Every choice and every reason against one is logged once, and ``chosen`` lists the choices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

import torch
from torch import Tensor

from kernels.custom_op import constant_when_traced
from kernels.language import HAS_TRITON, INTERPRETED
from kernels.launch import architecture
from kernels.tiles import MEASURED, TileTable, fingerprint

logger = logging.getLogger(__name__)

OPS = (
    "attention", "blend", "gated_residual", "geglu", "group_norm", "modulate", "rms_norm", "solver_step",
    "temporal_attention", "temporal_conv", "temporal_resnet",
)  # fmt: skip
IMPLEMENTATIONS = {
    **dict.fromkeys(OPS, ("triton", "torch")),
    "attention": ("triton", "torch", "flash", "cudnn"),
    "temporal_conv": ("triton", "torch", "conv3d"),
}
"""By op, what can run. ``torch`` is what torch takes by itself."""
UNMEASURED = {"attention": "torch", "temporal_conv": "torch"}
"""What ``auto`` takes before anything was measured, where it is not the kernel."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_selected: dict[str, str] = {}
_chosen: set[tuple[str, str, str]] = set()


def read_switches(text: str) -> dict[str, str]:
    """Switches as they are written in a setting: ``attention=torch,geglu=triton``; empty: none.

    Raises:
        ValueError: not of that form, or an op or a backend that there is none of.
    """
    backends: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, equals, backend = part.partition("=")
        if not equals:
            raise ValueError(f"kernels: {part!r}, expected op=backend, separated by commas")
        backends[op.strip()] = backend.strip()
    _check(backends)
    return backends


def select(backends: Mapping[str, str]) -> None:
    """Set the switch of these ops, for the whole process; ops that are not named stay as they are.

    Raises:
        ValueError: an op or a backend that there is none of.
    """
    _check(backends)
    _selected.update(backends)


@contextmanager
def selected(backends: Mapping[str, str]) -> Iterator[None]:
    """The same within a block: for tests and benchmarks, which compare the two."""
    before = dict(_selected)
    select(backends)
    try:
        yield
    finally:
        _selected.clear()
        _selected.update(before)


def chosen() -> tuple[tuple[str, str], ...]:
    """(op, implementation) of every choice made so far for CUDA tensors, sorted."""
    return tuple(sorted({(op, implementation) for op, implementation, _ in _chosen}))


def numerics() -> str:
    """What decides the choices, and with them the bytes, of CUDA tensors on one GPU: Triton's version, the hash of what
    was measured, and the switches that are set."""
    triton = version("triton") if HAS_TRITON else "none"
    switches = ",".join(f"{op}={backend}" for op, backend in sorted(_selected.items()) if backend != "auto")
    return f"triton-{triton}/{fingerprint()}/{switches}"


def may_run(tensor: Tensor) -> bool:
    """Whether kernels run where the tensor is. Ask this first: the rest reads shapes, which export would then fix."""
    return tensor.is_cuda or INTERPRETED


def choose(
    table: TileTable,
    shape_class: str,
    inputs: tuple[Tensor | None, ...],
    unfit: str = "",
    unfit_library: Callable[[str], str] = lambda _: "",
) -> str:
    """Which implementation an op runs on these inputs, which are where kernels may run.

    Args:
        table: the op's tiles.
        shape_class: of these inputs.
        inputs: every tensor of the call; the first decides the device and the dtype.
        unfit: what in the shapes or strides the kernel does not take; empty if nothing.
        unfit_library: what the library of that name does not take; empty if nothing. Asked of the one that is wanted.

    Raises:
        ValueError: the switch names an implementation that cannot run on these inputs, or the table one that there is
            none of.
    """
    first = inputs[0]
    assert first is not None and may_run(first)
    op, setting = table.op, _selected.get(table.op, "auto")
    wanted = _fastest(table, shape_class, architecture(first.device)) if setting == "auto" else setting
    obstacle = ""
    if wanted == "triton":
        obstacle = unfit or _obstacle(inputs)
    elif wanted != "torch":
        obstacle = unfit_library(wanted)
    if obstacle and setting != "auto":
        raise ValueError(f"{op}: the backend is {setting!r}, and {obstacle}")
    implementation = "torch" if obstacle else wanted
    _note(op, implementation, obstacle)
    return implementation


def takes_kernel(table: TileTable, shape_class: str, inputs: tuple[Tensor | None, ...], unfit: str = "") -> bool:
    """:func:`choose` for an op that has its kernel and torch alone: whether the kernel runs."""
    return choose(table, shape_class, inputs, unfit) == "triton"


def unfit_channels(*tensors: Tensor) -> str:
    """What keeps tensors [..., C] from a kernel that reads channels side by side; empty if nothing."""
    return "" if all(tensor.stride(-1) == 1 for tensor in tensors) else "the channels are not contiguous"


def _fastest(table: TileTable, shape_class: str, number: int | None) -> str:
    """What ``auto`` wants on that architecture."""
    measured = None if number is None else table.fastest(shape_class, number)
    if measured is not None and measured not in IMPLEMENTATIONS[table.op]:
        names = ", ".join(IMPLEMENTATIONS[table.op])
        raise ValueError(f"{MEASURED.name}: {table.op}, {shape_class}: backend={measured!r}: expected one of {names}")
    return measured or UNMEASURED.get(table.op, "triton")


def _obstacle(inputs: tuple[Tensor | None, ...]) -> str:
    """Why the kernels cannot run on these inputs, whichever op it is; empty if they can."""
    first = inputs[0]
    assert first is not None
    if not HAS_TRITON:
        return "Triton is not installed"
    if first.dtype not in DTYPES:
        return f"the dtype is {first.dtype}"
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return "gradients are needed"
    return "" if architecture(first.device) is not None else f"no tiles were chosen for {first.device}"


def _check(backends: Mapping[str, str]) -> None:
    for op, backend in backends.items():
        if op not in OPS:
            raise ValueError(f"kernel {op!r}: expected one of {', '.join(OPS)}")
        if backend not in ("auto", *IMPLEMENTATIONS[op]):
            names = ", ".join(("auto", *IMPLEMENTATIONS[op]))
            raise ValueError(f"backend of kernel {op}={backend!r}: expected one of {names}")


@constant_when_traced
def _note(op: str, implementation: str, obstacle: str) -> None:
    if (op, implementation, obstacle) not in _chosen:
        _chosen.add((op, implementation, obstacle))
        logger.info("kernel %s runs on %s%s", op, implementation, f": {obstacle}" if obstacle else "")
