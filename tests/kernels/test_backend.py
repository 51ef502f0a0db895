"""Which implementation runs, and that every choice is seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from kernels import backend
from kernels.backend import OPS, choose, chosen, select, selected, takes_kernel
from kernels.geglu import TILES, geglu
from kernels.tiles import TileTable

X = torch.ones(2, 8)
Measured = Callable[..., AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_chosen", set())
    monkeypatch.setattr(backend, "_selected", {})


def takes(table: TileTable = TILES, tensor: Tensor = X, unfit: str = "") -> bool:
    return takes_kernel(table, "all", (tensor,), unfit)


def test_cpu_tensors_take_torch_whatever_the_switch_says() -> None:
    with selected({"geglu": "triton"}):
        torch.testing.assert_close(geglu(X), torch.nn.functional.gelu(torch.ones(2, 4)))
    assert chosen() == ()


@pytest.mark.usefixtures("as_on_cuda")
def test_the_switch() -> None:
    assert takes()
    with selected({"geglu": "torch"}):
        assert not takes()
    assert takes()
    assert chosen() == (("geglu", "torch"), ("geglu", "triton"))


@pytest.mark.usefixtures("as_on_cuda")
def test_auto_leaves_to_the_vendor_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    select(dict.fromkeys(OPS, "auto"))
    attention = TileTable("attention", {}, {})
    assert takes() and not takes(attention)
    monkeypatch.setattr(TileTable, "fastest", lambda *_: "triton")
    assert takes(attention)
    monkeypatch.setattr(TileTable, "fastest", lambda *_: "torch")
    assert not takes()


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize(
    ("tensor", "unfit", "why"),
    [
        (X, "a head has 512 channels, at most 256 fit", "512 channels"),
        (X.double(), "", "float64"),
        (X.clone().requires_grad_(), "", "gradients"),
    ],
)
def test_what_a_kernel_cannot_do_is_an_error_where_it_was_asked_for(tensor: Tensor, unfit: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"geglu: the backend is 'triton', and .*{why}"):
        takes(tensor=tensor, unfit=unfit)
    select({"geglu": "auto"})
    assert not takes(tensor=tensor, unfit=unfit)
    assert chosen() == (("geglu", "torch"),)


@pytest.mark.usefixtures("as_on_cuda")
def test_without_gradients_a_parameter_is_no_obstacle() -> None:
    with torch.inference_mode():
        assert takes(tensor=X.clone().requires_grad_())


@pytest.mark.usefixtures("as_on_cuda")
def test_a_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    select({"geglu": "auto"})
    with caplog.at_level(logging.INFO, logger="kernels.backend"):
        for _ in range(3):
            takes(tensor=X.double())
            takes(tensor=X.clone().requires_grad_())
    assert [record.getMessage() for record in caplog.records] == [
        "kernel geglu runs on torch: the dtype is torch.float64",
        "kernel geglu runs on torch: gradients are needed",
    ]
    assert chosen() == (("geglu", "torch"),)


def test_what_is_measured_wins_until_a_switch_says_otherwise(measured: Measured) -> None:
    with measured("geglu", "all", "torch"):
        assert not takes()
        with selected({"geglu": "triton"}):
            assert takes()
    with measured("geglu", "all", "triton"):
        assert takes()


def test_a_table_that_names_what_there_is_not_is_refused(measured: Measured) -> None:
    message = "measured.json: geglu, all: backend='cudnn': expected one of triton, torch"
    with measured("geglu", "all", "cudnn"), pytest.raises(ValueError, match=message):
        takes()
    assert chosen() == ()


def test_a_library_runs_where_it_takes_the_inputs(measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    table = TileTable("attention", {}, {})
    with measured("attention", "all", "cudnn"), caplog.at_level(logging.INFO, logger="kernels.backend"):
        assert choose(table, "all", (X,), "unfit for the kernel", lambda _: "") == "cudnn"
        assert choose(table, "all", (X,), unfit_library=lambda name: f"{name} is picky") == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "kernel attention runs on cudnn",
        "kernel attention runs on torch: cudnn is picky",
    ]
    with (
        selected({"attention": "flash"}),
        pytest.raises(ValueError, match="the backend is 'flash', and flash is picky"),
    ):
        choose(table, "all", (X,), unfit_library=lambda name: f"{name} is picky")
    assert chosen() == (("attention", "cudnn"), ("attention", "torch"))


@pytest.mark.parametrize(
    ("backends", "message"),
    [
        ({"gelu": "torch"}, "kernel 'gelu': expected one of attention"),
        ({"geglu": "cudnn"}, "backend of kernel geglu='cudnn': expected one of auto, triton, torch$"),
        ({"attention": "conv3d"}, "attention='conv3d': expected one of auto, triton, torch, flash, cudnn$"),
    ],
)
def test_unknown_switches_are_refused(backends: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select({"blend": "torch", **backends})
    assert backend._selected == {}


def test_switches_within_a_block() -> None:
    select({"blend": "torch"})
    with pytest.raises(RuntimeError), selected({"blend": "auto", "geglu": "torch"}):
        assert backend._selected == {"blend": "auto", "geglu": "torch"}
        raise RuntimeError
    assert backend._selected == {"blend": "torch"}


def test_switches_are_read_from_a_setting() -> None:
    assert backend.read_switches("") == {}
    assert backend.read_switches(" attention=torch, geglu = triton,") == {"attention": "torch", "geglu": "triton"}
    assert backend.read_switches("attention=cudnn,temporal_conv=conv3d")["attention"] == "cudnn"
    for text, message in (("geglu", "'geglu', expected op=backend"), ("gelu=torch", "kernel 'gelu'")):
        with pytest.raises(ValueError, match=message):
            backend.read_switches(text)


def test_numerics_name_the_switches() -> None:
    plain = backend.numerics()
    with selected({"geglu": "torch", "blend": "auto"}):
        assert backend.numerics() == f"{plain}geglu=torch"
