"""Linear layers in 8 bits: how far off they are, what they take, and that they are made one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blank import blank_network
from models.checkpoints.systems import systems
from models.eight_bit import EightBitLinear, fill, make_room_in_8_bits, weight_bytes
from models.spec.memory import T5, T5_BYTES_IN_8_BITS


def layer(weight: Tensor) -> EightBitLinear:
    made = EightBitLinear(weight.shape[1], weight.shape[0])
    made.hold(weight)
    return made


def drawn() -> tuple[Tensor, Tensor]:
    """A weight [40, 96] whose outputs differ in scale by six orders, with one that is all zeros, and x [5, 96]."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 96, generator=generator) * torch.logspace(-4, 2, 40)[:, None]
    weight[7] = 0.0
    return weight, torch.randn(5, 96, generator=generator)


def off(made: EightBitLinear, weight: Tensor, x: Tensor) -> Tensor:
    """Each output's largest error in units of its bound: half a step of each of its weights."""
    error = (made(x).double() - x.double() @ weight.double().T).abs()
    return (error / (made.scale.double() / 2 * x.double().abs().sum(dim=1)[:, None])).amax(dim=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_output_is_further_off_than_its_own_weights_allow(dtype: torch.dtype) -> None:
    weight, x = drawn()
    weight = weight.to(dtype)
    made = layer(weight)
    assert made.weight.dtype == torch.int8 and made.weight.abs().amax() == 127
    scale = made.scale.double()[:, None]
    assert ((weight.double() - scale * made.weight.double()).abs() <= scale * (0.5 + 1e-4)).all()
    assert off(made, weight, x).amax() < 1.0 and (made(x)[:, 7] == 0.0).all()
    expected = x @ weight.float().T
    assert 1e-3 < float((made(x) - expected).norm() / expected.norm()) < 1e-2
    made.scale = made.scale.amax().expand(40)  # one for all, as if outputs did not differ
    made.weight = nn.Parameter((weight.float() / made.scale[:, None]).round().to(torch.int8), requires_grad=False)
    relative = (made(x) - expected)[:, :7].norm() / expected[:, :7].norm()
    assert relative == 1.0, "small outputs would be lost"


def test_in_bf16_it_adds_no_error_but_that_of_bf16() -> None:
    weight, x = drawn()
    weight, x = weight.bfloat16(), x.bfloat16()
    made, expected = layer(weight), x.double() @ weight.double().T

    def relative(result: Tensor, to: Tensor) -> float:
        return float((result.double() - to.double()).norm() / to.double().norm())

    assert made(x).dtype == torch.bfloat16
    of_bf16, of_8_bits = relative(F.linear(x, weight), expected), relative(made(x.float()), expected)
    assert relative(made(x), made(x.float())) < 2 * of_bf16 < of_8_bits


def test_it_moves_as_any_module_does() -> None:
    made = layer(drawn()[0]).to("meta")
    assert made.weight.is_meta and made.scale.is_meta
    assert (made.weight.dtype, made.scale.dtype) == (torch.int8, torch.float32)


def test_t5_xxl_takes_half_of_what_it_takes_in_bf16() -> None:
    network = blank_network(systems()["sd3-medium"].parts[T5])
    full = weight_bytes(network, torch.bfloat16)
    names = network.state_dict().keys()
    make_room_in_8_bits(network)
    assert network.state_dict().keys() == names
    assert full == 2 * 4_762_310_656 and weight_bytes(network, torch.bfloat16) / full == pytest.approx(0.514, abs=1e-3)
    assert 2 * weight_bytes(network, torch.bfloat16) / full == pytest.approx(T5_BYTES_IN_8_BITS, abs=2e-3)


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_layers_that_do_more_are_left_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 3), Twice(3, 4, bias=False), nn.Sequential(nn.Linear(4, 5, bias=False)))
    make_room_in_8_bits(network)
    kinds = [type(module) for module in network.modules()]
    assert kinds == [nn.Sequential, nn.Linear, Twice, nn.Sequential, EightBitLinear]


def test_never_is_more_than_one_weight_there_unrounded() -> None:
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)), nn.LayerNorm(8))
    make_room_in_8_bits(network)
    read: list[weakref.ref[Tensor]] = []

    def stored() -> Iterator[tuple[str, Tensor]]:
        for i in range(4):
            assert sum(tensor() is not None for tensor in read) <= 1
            tensor = torch.randn(8, 8)
            read.append(weakref.ref(tensor))
            yield f"{i}.weight", tensor
        yield from (("4.weight", torch.ones(8)), ("4.bias", torch.zeros(8)))

    fill(network, stored(), torch.bfloat16, "cpu")
    assert len(read) == 4 and {p.dtype for p in network.parameters()} == {torch.int8, torch.bfloat16}
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
