"""Files of tensors, read without trust: safetensors, and archives of `torch.save` that hold nothing but tensors.

A tensor is mapped, so that weights of the right dtype are never copied, or read into memory of its own. What is mapped
is as safe as its file: one that is cut in place ends whoever touches a page behind the cut, and one that is overwritten
in place shows its new bytes. A file that is replaced by renaming another one over it harms nobody.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_HEADER_BYTES = 32 * 2**20
"""Of a safetensors header, or of the pickle inside a `torch.save` archive. Published ones are below 1 MiB."""
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Names of the dtypes that weights may have."""
_NAME_OF = {dtype: name for name, dtype in FLOATS.items()}


@dataclass(frozen=True)
class Entry:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: one of ``FLOATS``, or another that weights cannot have, such as I64."""


class TensorFile(ABC):
    """One file, open for reading."""

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        self.path = path
        self.entries = entries
        self.metadata = metadata
        """Free text of whoever wrote the file."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor of that name, in memory of its own on the CPU.

        Raises:
            ValueError: its bytes cannot be read.
        """

    @abstractmethod
    def map(self, name: str) -> Tensor:
        """The tensor of that name on the CPU, as it lies in the file: a page is read when it is first touched, and one
        that is written to becomes memory of this process. The file is never written to.

        Raises:
            ValueError: the file is not any more what it was when it was opened.
        """


def open_tensors(path: Path) -> TensorFile:
    """Open a file by its suffix: ``.safetensors``, or ``.ckpt`` for an archive of `torch.save`.

    Raises:
        ValueError: no such file, another suffix, or its content is not what the suffix says; the message names it.
    """
    if path.suffix not in _OPENERS:
        raise ValueError(f"{path} is not a file of weights, expected one of {', '.join(_OPENERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    return _OPENERS[path.suffix](path)


class _Safetensors(TensorFile):
    def __init__(self, path: Path) -> None:
        _check_header(path)
        try:
            self._file = safe_open(path, framework="pt", backend="pread")
            slices = {name: self._file.get_slice(name) for name in self._file.offset_keys()}
            entries = {name: Entry(tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}
            super().__init__(path, entries, self._file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no safetensors file, or is cut off: {error}") from error
        self._mapping: Any = None

    def read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read: {error}") from error
        return tensor

    def map(self, name: str) -> Tensor:
        try:
            if self._mapping is None:
                self._mapping = safe_open(self.path, framework="pt", backend="mmap")
            tensor: Tensor = self._mapping.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read: {error}") from error
        if tuple(tensor.shape) != self.entries[name].shape or tensor.dtype != FLOATS.get(self.entries[name].dtype):
            raise ValueError(f"{self.path} was replaced while it was read: {name} is another tensor now")
        return tensor


class _Archive(TensorFile):
    """What `torch.save` wrote, with the tensors at its top or under ``state_dict``, as training frameworks put them."""

    def __init__(self, path: Path) -> None:
        _check_archive(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged pickle can fail in any way
            fault = str(error).splitlines()[0] if str(error) else repr(error)
            raise ValueError(
                f"{path} is refused, since it is damaged or holds more than tensors (who trusts it, converts it to "
                f"safetensors): {fault}"
            ) from error
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name")
        self._tensors = {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, Tensor)}
        for name, tensor in self._tensors.items():
            _check_tensor(path, name, tensor)
        entries = {n: Entry(tuple(t.shape), _NAME_OF.get(t.dtype, str(t.dtype))) for n, t in self._tensors.items()}
        super().__init__(path, entries, {})

    def read(self, name: str) -> Tensor:
        return self.map(name).clone()

    def map(self, name: str) -> Tensor:
        return self._tensors[name].detach()


_OPENERS: dict[str, type[_Safetensors] | type[_Archive]] = {".safetensors": _Safetensors, ".ckpt": _Archive}


def _check_header(path: Path) -> None:
    """The header says its own length, which the parser would believe."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if length > MAX_HEADER_BYTES:
        raise ValueError(
            f"{path} is no safetensors file: a header of {length} bytes, expected {MAX_HEADER_BYTES} at most"
        )


def _check_archive(path: Path) -> None:
    """A plain archive: `torch.save` compresses nothing, and what is compressed may be a bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is no archive of torch.save (files older than 2020 must be converted): {error}"
        ) from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: {member.filename} is compressed, which torch.save never does")
        if member.filename.endswith("data.pkl") and member.file_size > MAX_HEADER_BYTES:
            raise ValueError(f"{path}: a pickle of {member.file_size} bytes, expected {MAX_HEADER_BYTES} at most")


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """A tensor whose elements are all stored: one that repeats an element could have any size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"{path}: {name} is no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{path}: {name} has shape {list(tensor.shape)}, more than is stored of it")
