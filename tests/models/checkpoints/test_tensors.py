"""Files of tensors that were not written for us: whatever is in them, the answer is a tensor or a ValueError that
names the file."""

from __future__ import annotations

import io
import json
import pickle
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from models.adapters.file import read_adapter
from models.checkpoints.tensors import FLOATS, MAX_HEADER_BYTES, Entry, open_tensors

STATE = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.float16), "c": torch.zeros(2, 0)}


def packed(content: object) -> bytes:
    """As `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.safetensors", save(STATE)),
        ("a.ckpt", packed(STATE)),
        ("a.ckpt", packed({"state_dict": STATE, "epoch": 3, "lr": [0.1]})),
        ("a.ckpt", packed({"state_dict": {n: torch.nn.Parameter(t) for n, t in STATE.items()}})),
    ],
)
def test_tensors_are_read_into_memory_of_their_own(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    file = open_tensors(path)
    assert file.entries["a.weight"] == Entry((3, 4), "F32") and file.entries["b"] == Entry((5,), "F16")
    read = {key: file.read(key) for key in file.entries}
    assert all(torch.equal(read[key], STATE[key]) and read[key].dtype == STATE[key].dtype for key in STATE)
    del file
    path.write_bytes(b"")  # of a mapped file, nothing would be left
    assert torch.equal(read["a.weight"].clone(), STATE["a.weight"])


@pytest.mark.parametrize(("name", "content"), [("a.safetensors", save(STATE)), ("a.ckpt", packed(STATE))])
def test_mapped_tensors_are_the_file_s_until_they_are_written_to(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    mapped = {key: open_tensors(path).map(key) for key in STATE}
    assert all(torch.equal(mapped[key], STATE[key]) and mapped[key].dtype == STATE[key].dtype for key in STATE)
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    mapped["a.weight"].add_(1.0)
    assert path.read_bytes() == content
    assert torch.equal(open_tensors(path).map("a.weight"), STATE["a.weight"])
    other = tmp_path / "other"
    other.write_bytes(b"")
    other.replace(path)
    assert torch.equal(mapped["b"], STATE["b"]), "of the file that was there"
    assert torch.equal(mapped["a.weight"], STATE["a.weight"] + 1.0)


@pytest.mark.parametrize(
    "change", [{"a": torch.zeros(4)}, {"a": torch.zeros(5, dtype=torch.int32)}, {"b": torch.ones(5)}]
)
def test_a_file_that_is_replaced_between_its_header_and_its_tensors(tmp_path: Path, change: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(5)}, path)
    file = open_tensors(path)
    save_file(change, path)
    with pytest.raises(ValueError, match="a.safetensors.*(was replaced while it was read|a cannot be read)"):
        file.map("a")


def test_tensors_that_do_not_lie_as_their_dtype_wants(tmp_path: Path) -> None:
    """The format allows it, its own writer never does it."""
    entries = {
        "small": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    (tmp_path / "a.safetensors").write_bytes(
        with_header(entries, bytes(3) + torch.tensor([1.0, 2.0]).numpy().tobytes())
    )
    file = open_tensors(tmp_path / "a.safetensors")
    assert file.map("a").tolist() == file.read("a").tolist() == [1.0, 2.0]


class _Runs:
    """Unpickled without care, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch.__globals__["os"].system, (f"touch {self.path}",)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "a.ckpt").write_bytes(packed({"state_dict": STATE, "callbacks": _Runs(trap)}))
    with pytest.raises(ValueError, match="a.ckpt is refused, since it is damaged or holds more than tensors"):
        open_tensors(tmp_path / "a.ckpt")
    assert not trap.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert trap.exists()  # so the trap works


def expanded() -> dict[str, Tensor]:
    return {"a": torch.zeros(1).expand(10**6, 10**6)}


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 10**6)
    return buffer.getvalue()


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "empty": ("a.safetensors", b"", "no safetensors file"),
    "a pickle under another name": ("a.safetensors", packed(STATE), "a header of .* bytes"),
    "a huge header": (
        "a.safetensors",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{",
        "a header of 33554433 bytes",
    ),
    "cut off": ("a.safetensors", save(STATE)[:-4], "no safetensors file, or is cut off"),
    "something behind": ("a.safetensors", save(STATE) + b"more", "no safetensors file"),
    "no JSON": ("a.safetensors", with_header(b"{{{{"), "no safetensors file"),
    "deep JSON": ("a.safetensors", with_header(b'{"a":' + b"[" * 10**5), "no safetensors file"),
    "beyond the end": (
        "a.safetensors",
        with_header({"a": {**F32, "data_offsets": [0, 800]}}),
        "no safetensors file",
    ),
    "overlapping": ("a.safetensors", with_header({"a": F32, "b": F32}, bytes(8)), "no safetensors file"),
    "another size": (
        "a.safetensors",
        with_header({"a": {**F32, "shape": [2**62]}}, bytes(8)),
        "no safetensors file",
    ),
    "no archive": ("a.ckpt", save(STATE), "no archive of torch.save"),
    "an old pickle": ("a.ckpt", pickle.dumps({"a": 1}), "no archive of torch.save"),
    "compressed": ("a.ckpt", compressed(), "data.pkl is compressed"),
    "cut archive": ("a.ckpt", packed(STATE)[:-200], "no archive of torch.save"),
    "a list": ("a.ckpt", packed([torch.zeros(1)]), "holds a list, expected tensors by name"),
    "one element many times": ("a.ckpt", packed(expanded()), "a has shape .* more than is stored"),
    "sparse": ("a.ckpt", packed({"a": torch.zeros(3, 3).to_sparse()}), "a.ckpt"),
    "another kind": ("a.bin", packed(STATE), "not a file of weights, expected one of .safetensors, .ckpt"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_what_is_no_file_of_tensors_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        open_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("gone.safetensors", "folder.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            open_tensors(tmp_path / name)


def test_a_file_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(10_000)}, path)
    file = open_tensors(path)
    with path.open("r+b") as cut:
        cut.truncate(1000)
    for take in (file.read, file.map):
        with pytest.raises(ValueError, match="a.safetensors: a cannot be read"):
            take("a")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped where the structure is, pieces cut, doubled or overwritten."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(changed))
        match draw.randrange(5):
            case 0 | 1:
                at = draw.randrange(min(len(changed), 400)) if draw.random() < 0.7 else at
                changed[at] ^= 1 << draw.randrange(8)
            case 2:
                del changed[at : at + draw.randrange(1, 64)]
            case 3:
                changed[at:at] = changed[at : at + draw.randrange(1, 64)]
            case _:
                changed[at : at + 8] = draw.randbytes(8)
        changed = changed or bytearray(content)
    return bytes(changed)


def bits(tensor: Tensor) -> Tensor:
    """Whatever they mean, as damaged numbers may be none."""
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize(
    "seconds", [10.0, pytest.param(600.0, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["10s", "10min"]
)
def test_damaged_files_never_do_more_than_raise_our_error(tmp_path: Path, seconds: float) -> None:
    adapter = {"lora_unet_a.lora_down.weight": torch.ones(2, 3), "lora_unet_a.lora_up.weight": torch.ones(4, 2)}
    originals = {
        "a.safetensors": save(STATE, {"x": "y"}),
        "b.safetensors": save(adapter, {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 4}'}),
        "a.ckpt": packed({"state_dict": STATE}),
    }
    draw, refused, read = random.Random(int(seconds)), 0, 0
    started = (time.process_time(), time.monotonic())
    while time.process_time() - started[0] < seconds and time.monotonic() - started[1] < 5 * seconds:
        name = draw.choice(list(originals))
        path = tmp_path / name
        path.write_bytes(mutated(originals[name], draw))
        try:
            if name == "b.safetensors":
                for layer in read_adapter(path).layers:
                    assert layer.scale == layer.scale
            file = open_tensors(path)
            for key, entry in file.entries.items():
                assert tuple(file.read(key).shape) == entry.shape
                if entry.dtype in FLOATS:
                    assert bits(file.map(key)).equal(bits(file.read(key)))
            read += 1
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20 and read > 5
