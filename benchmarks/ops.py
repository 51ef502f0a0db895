"""Every op in all that it can run as, with the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kernels import (
    adaln,
    attention,
    blend,
    geglu,
    group_norm_silu,
    rms_norm,
    solver_step,
    temporal_attention,
    temporal_conv,
    temporal_resnet,
)
from kernels.adaln import (
    launch_gated_residual,
    launch_modulate,
    plan_gated_residual,
    plan_modulate,
    torch_gated_residual,
    torch_modulate,
)
from kernels.attention import LIBRARIES, launch_attention, plan_attention, torch_attention
from kernels.backend import selected
from kernels.blend import launch_blend, plan_blend, torch_blend
from kernels.geglu import launch_geglu, plan_geglu, torch_geglu
from kernels.group_norm_silu import launch_group_norm, plan_group_norm, torch_group_norm
from kernels.launch import Plan
from kernels.rms_norm import launch_rms_norm, plan_rms_norm, torch_rms_norm
from kernels.solver_step import launch_solver_step, plan_solver_step, torch_solver_step
from kernels.temporal_attention import (
    launch_temporal_attention,
    plan_temporal_attention,
    torch_temporal_attention,
)
from kernels.temporal_conv import (
    Around,
    conv3d_temporal_conv,
    launch_temporal_conv,
    plan_conv,
    torch_temporal_conv,
)
from kernels.temporal_resnet import NormedConv, launch_temporal_resnet, plan_temporal_resnet, torch_temporal_resnet
from kernels.tiles import TileTable


@dataclass(frozen=True)
class Op:
    """One op in all that it can run as."""

    plan: Callable[..., Plan]
    """Takes the call's arguments and the architecture."""
    launch: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    """In torch's operators throughout: what the kernels are compared with."""
    tiles: TileTable
    shape_class: Callable[..., str] = lambda *_: "all"
    """Takes the call's arguments."""
    others: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    """By name, what can be dispatched beside the kernel and ``eager``; under ``torch`` what is in place of that."""

    @property
    def choices(self) -> dict[str, Callable[..., Tensor]]:
        """By name, everything but the kernel that can be dispatched."""
        return {"torch": self.eager, **self.others}


def _plan_temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, frames: int, architecture: int) -> Plan:
    conv = plan_conv(x, weight, bias, frames, Around(), architecture)
    return Plan(conv.y, (conv.launch,))


def _library_attention(library: str) -> Callable[..., Tensor]:
    """Attention by a library, or an error where that does not take the inputs."""

    def call(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
        with selected({"attention": library}):
            return attention.attention(query, key, value, heads, causal)

    return call


def _op_by_op(x: Tensor, weights: list[Tensor], added: Tensor | None, gain: Tensor, groups: int, eps: float) -> Tensor:
    """The residual block as it runs without its kernel: norms and convolutions are ops with a choice of their own."""
    clip = x.unflatten(1, (gain.shape[1], -1, 1)).movedim(-1, 2)
    with selected({"temporal_resnet": "torch"}):
        return temporal_resnet.temporal_resnet(
            clip, NormedConv(*weights[:4]), NormedConv(*weights[4:]), added, gain, groups, eps
        )


OPS = {
    "attention": Op(
        plan_attention,
        launch_attention,
        torch_attention,
        attention.TILES,
        lambda query, key, _value, heads, _causal: attention.shape_class(query.shape[2] // heads, key.shape[1]),
        {name: _library_attention(name) for name in LIBRARIES},
    ),
    "blend": Op(plan_blend, launch_blend, torch_blend, blend.TILES),
    "gated_residual": Op(plan_gated_residual, launch_gated_residual, torch_gated_residual, adaln.GATE_TILES),
    "geglu": Op(plan_geglu, launch_geglu, torch_geglu, geglu.TILES),
    "group_norm": Op(plan_group_norm, launch_group_norm, torch_group_norm, group_norm_silu.TILES),
    "modulate": Op(plan_modulate, launch_modulate, torch_modulate, adaln.MODULATE_TILES),
    "rms_norm": Op(plan_rms_norm, launch_rms_norm, torch_rms_norm, rms_norm.TILES),
    "solver_step": Op(plan_solver_step, launch_solver_step, torch_solver_step, solver_step.TILES),
    "temporal_attention": Op(
        plan_temporal_attention,
        launch_temporal_attention,
        torch_temporal_attention,
        temporal_attention.TILES,
        lambda query, _key, _value, heads: temporal_attention.shape_class(query, heads),
    ),
    "temporal_conv": Op(
        _plan_temporal_conv,
        launch_temporal_conv,
        torch_temporal_conv,
        temporal_conv.TILES,
        lambda _x, weight, *_: temporal_conv.shape_class(weight.shape[0]),
        {"conv3d": conv3d_temporal_conv},
    ),
    "temporal_resnet": Op(
        plan_temporal_resnet,
        launch_temporal_resnet,
        torch_temporal_resnet,
        temporal_resnet.TILES,
        lambda x, *_: temporal_conv.shape_class(x.shape[2]),
        {"torch": _op_by_op},
    ),
}
