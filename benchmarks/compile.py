"""One kernel compiled for an architecture that need not be there, and what the compiler made of it."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.launch import Launch

SHARED_LIMITS = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a block can have."""
MATRIX_UNIT = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""The instruction of each architecture's tensor cores."""
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Variant:
    """Everything that decides what a kernel is compiled to, but for the architecture."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    """Type of every argument by name, ``constexpr`` for one that is known."""
    known: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    """Addresses and numbers that 16 divides."""
    tile_names: tuple[str, ...]
    """Of ``known``, the block sizes."""
    num_warps: int
    num_stages: int

    @property
    def digest(self) -> str:
        """Of the above, with the source of the kernel and of what it calls, and Triton's version."""
        parts = (_source(self.kernel), self.signature, self.known, self.aligned, self.num_warps, self.num_stages)
        return hashlib.sha256(repr((parts, triton.__version__)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Facts:
    """What the compiler made of a variant on one architecture."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    wide_loads: int
    """Instructions that read 16 bytes of global memory for a thread, by whichever way."""
    narrow_loads: int
    """The others."""
    matrix_instructions: int
    """Of the architecture's own kind."""
    serialised: bool
    """Whether the assembler says that it made asynchronous matrix instructions wait for each other."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def variant(launch: Launch) -> Variant:
    """What Triton would specialise a launch to: its rules for numbers that are 1 or multiples of 16."""
    given = {**launch.arguments, **launch.tile.sizes}
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    signature, known, aligned = [], [], []
    for name in launch.kernel.arg_names:
        value = given[name]
        if name in constants or value is None or (value == 1 if isinstance(value, int) else False):
            signature.append((name, "constexpr"))
            known.append((name, value))
        elif isinstance(value, Tensor):
            signature.append((name, TYPES[value.dtype]))
            aligned.append(name)
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if abs(value) < 2**31 else "i64"))
            aligned += [name] if value % 16 == 0 else []
    tile = launch.tile
    facts = (tuple(signature), tuple(known), tuple(aligned), tuple(tile.sizes))
    return Variant(launch.kernel, *facts, tile.num_warps, tile.num_stages)


def build(wanted: Variant, architecture: int) -> Facts:
    """Compile for an architecture and read the assembler's own report.

    Raises:
        RuntimeError: that report is not there.
    """
    signature = dict(wanted.signature)
    places = {name: i for i, name in enumerate(signature)}
    source = ASTSource(
        fn=wanted.kernel,
        signature=signature,
        constexprs=dict(wanted.known),
        attrs={(places[name],): [["tt.divisibility", 16]] for name in wanted.aligned},
    )
    options = {"num_warps": wanted.num_warps, "num_stages": wanted.num_stages}
    report = io.StringIO()
    with _reported(), contextlib.redirect_stdout(report):
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return _facts(compiled.asm["ptx"], report.getvalue(), compiled.metadata.shared, architecture)


def problems(facts: Facts, architecture: int, multiplies: bool, bulk: bool = True) -> list[str]:
    """What must not be.

    Args:
        facts: of a variant.
        architecture: it was built for.
        multiplies: whether it has matrix products.
        bulk: whether it reads more than statistics.
    """
    found = []
    if facts.spilled_bytes:
        found.append(f"{facts.spilled_bytes} bytes spilled")
    if facts.shared_bytes > SHARED_LIMITS[architecture]:
        found.append(f"{facts.shared_bytes} bytes of shared memory, {SHARED_LIMITS[architecture]} there are")
    if facts.serialised:
        found.append("matrix instructions wait for each other")
    if multiplies and not facts.matrix_instructions:
        found.append(f"no {MATRIX_UNIT[architecture]}")
    if bulk and not facts.wide_loads:
        found.append("no load of 16 bytes")
    return found


def reads_bulk(wanted: Variant) -> bool:
    """Whether the kernel reads tensors of activations. The merging of statistics does not."""
    return "merge" not in wanted.kernel.__name__


def multiplies(wanted: Variant) -> bool:
    """Whether the kernel has matrix products."""
    return "tl.dot(" in wanted.kernel.src


def _source(kernel: Any) -> str:
    called = [value for name, value in sorted(kernel.fn.__globals__.items())
              if isinstance(value, triton.JITFunction) and re.search(rf"\b{name}\(", kernel.src)]  # fmt: skip
    # Of the syntax: comments and line breaks change nothing.
    return "\n".join(ast.unparse(ast.parse(function.src)) for function in (kernel, *called))


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """The assembler's report is printed, and no compilation comes from an earlier one: that would have no report."""
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        yield


def _facts(ptx: str, report: str, shared: int, architecture: int) -> Facts:
    registers = re.search(r"Used (\d+) registers", report)
    if registers is None:
        raise RuntimeError(f"the assembler does not say how many registers it used:\n{report}")
    spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", report))
    loads = re.findall(r"ld\.global\S*|cp\.async\.c[ag]\.shared\.global[^;]*|cp\.async\.bulk\.tensor", ptx)
    wide = [load for load in loads if re.search(r"v4\.b32|v8\.b16|v2\.b64|v8\.b32|, (0x10|16), |bulk", load + " ")]
    unit = MATRIX_UNIT[architecture].replace(".", r"\.")
    return Facts(
        registers=int(registers[1]),
        spilled_bytes=spills,
        shared_bytes=shared,
        wide_loads=len(wide),
        narrow_loads=len(loads) - len(wide),
        matrix_instructions=len(re.findall(unit, ptx)),
        serialised=re.search(r"C75\d\d|serializ", report) is not None,
    )
