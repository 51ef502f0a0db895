"""ONNX Runtime behind a network's own call: torch tensors in, a torch tensor out, no copies between."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

Axis = int | tuple[int, str]
"""A fixed size, or a multiple of a named one: ``(2, "height")`` is written ``2*height`` in the file."""


class OnnxSession:
    """A network on ONNX Runtime's CPU back end, called like the torch module that it was exported from.

    May be called from any thread, from several at once too.
    """

    def __init__(self, path: Path, threads: int) -> None:
        """Load and optimise the graph; takes tenths of a second.

        Args:
            path: the .onnx file.
            threads: threads that one operation may use. They do not change the result.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that spins while it waits takes the core from whoever has work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {i.name: _axes(i.shape) for i in self._session.get_inputs() if _is_fp32(path, i)}
        (output,) = (o for o in self._session.get_outputs() if _is_fp32(path, o))
        self._output_name, self._output = output.name, _axes(output.shape)
        self.numerics = f"onnxruntime-{onnxruntime.__version__}/fp32/{_processor()}/{_digest(path)[:16]}/any"
        """What the output's bytes depend on: the library, the precision, the processor's vector instructions (the
        library picks its kernels by them) and the graph with its weights. ``any``: neither the other rows of the batch,
        nor its size, nor the number of threads."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs' names, in the order of the call."""
        return tuple(self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One evaluation.

        Args:
            inputs: fp32 CPU tensors, shaped as for the network. Those that are not contiguous are copied.

        Returns:
            A new tensor.

        Raises:
            TypeError: not tensors, not fp32, or not as many as the network takes.
            ValueError: not on the CPU, or of a shape that the network does not take.
        """
        if len(inputs) != len(self._inputs):
            raise TypeError(f"expected {len(self._inputs)} tensors ({', '.join(self._inputs)}), got {len(inputs)}")
        sizes: dict[str, int] = {}
        binding = self._session.io_binding()
        kept = []  # the binding holds addresses only
        for (name, axes), tensor in zip(self._inputs.items(), inputs, strict=True):
            _require_fp32_on_cpu(name, tensor)
            _match(name, axes, tensor.shape, sizes)
            kept.append(tensor.contiguous())
            binding.bind_input(name, "cpu", 0, np.float32, tuple(tensor.shape), kept[-1].data_ptr())
        output = torch.empty([axis if isinstance(axis, int) else axis[0] * sizes[axis[1]] for axis in self._output])
        binding.bind_output(self._output_name, "cpu", 0, np.float32, tuple(output.shape), output.data_ptr())
        self._session.run_with_iobinding(binding)
        return output


def _axes(shape: Sequence[int | str]) -> tuple[Axis, ...]:
    return tuple(_axis(size) for size in shape)


def _axis(size: int | str) -> Axis:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z_]\w*)", size)
    if match is None:
        raise ValueError(f"dimension {size!r} is neither a number, nor a name, nor a multiple of a name")
    return int(match[1] or 1), match[2]


def _is_fp32(path: Path, tensor: onnxruntime.NodeArg) -> bool:
    if tensor.type != "tensor(float)":
        raise ValueError(f"{path}: {tensor.name} is a {tensor.type}, expected tensor(float)")
    return True


def _require_fp32_on_cpu(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch tensor")
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} is {tensor.dtype}, expected torch.float32")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}, expected cpu")


def _match(name: str, axes: Sequence[Axis], shape: Sequence[int], sizes: dict[str, int]) -> None:
    """Check ``shape`` against ``axes``, and note in ``sizes`` what each symbol stands for."""
    fits = len(axes) == len(shape)
    for axis, size in zip(axes, shape, strict=False):
        if isinstance(axis, int):
            fits &= size == axis
        else:
            factor, symbol = axis
            fits &= size > 0 and size % factor == 0 and sizes.setdefault(symbol, size // factor) == size // factor
    if not fits:
        wanted = ", ".join(str(a) if isinstance(a, int) else f"{a[0]}*{a[1]}".removeprefix("1*") for a in axes)
        known = f" with {sizes}" if sizes else ""
        raise ValueError(f"{name} has shape {tuple(shape)}, expected ({wanted}){known}")


def _digest(path: Path) -> str:
    """Hash of the graph and of the weights that lie beside it."""
    digest = hashlib.sha256()
    for part in sorted(path.parent.glob(f"{path.name}*")):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _processor() -> str:
    """The architecture, and on x86 the widest vector instructions."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        words = {platform.processor()}
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in words), "")
    return f"{platform.machine()}-{widest}".rstrip("-")
