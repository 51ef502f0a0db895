"""Scaled dot-product attention.

    out = softmax(q k^T / sqrt(d)) v        (Vaswani et al. 2017, equation 1), per head

The head dimension is the last factor of the channel axis, so projections feed it without a transpose in memory.

The kernel passes once over the keys with a running maximum and sum (Dao et al. 2022, algorithm 1). A tile's side is a
power of two; a head of 72, 80 or 160 channels is cut into two such parts (64 + 16, 128 + 32) rather than padded to the
next one, which would take up to 1.6 times the shared memory.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.backend import choose, may_run, unfit_channels
from kernels.custom_op import custom_op, like_first
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, next_power_of_2, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "attention",
    candidates={
        "d64": (
            Tile({"BM": 128, "BN": 128}, 8, 3),
            Tile({"BM": 128, "BN": 64}, 4, 3),
            Tile({"BM": 128, "BN": 64}, 8, 3),
            Tile({"BM": 64, "BN": 64}, 4, 3),
        ),
        "d64 short": (
            Tile({"BM": 128, "BN": 16}, 4, 3),
            Tile({"BM": 64, "BN": 128}, 4, 1),
            Tile({"BM": 64, "BN": 32}, 4, 2),
        ),
        "d128": (
            Tile({"BM": 128, "BN": 64}, 8, 3),
            Tile({"BM": 128, "BN": 64}, 8, 2),
            Tile({"BM": 64, "BN": 64}, 4, 2),
        ),
        "d128 short": (Tile({"BM": 64, "BN": 16}, 4, 3), Tile({"BM": 128, "BN": 16}, 8, 3)),
        "d256": (Tile({"BM": 128, "BN": 64}, 8, 2), Tile({"BM": 64, "BN": 32}, 4, 2), Tile({"BM": 64, "BN": 64}, 8, 2)),
        "d256 short": (Tile({"BM": 64, "BN": 16}, 4, 2), Tile({"BM": 64, "BN": 16}, 8, 2)),
    },
    interpreted={
        f"{width}{keys}": Tile({"BM": 32, "BN": 32}, 4) for width in ("d64", "d128", "d256") for keys in ("", " short")
    },
    # 128 queries of 160 channels spill registers there.
    exceptions={("d256", 80): 2, ("d256", 89): 2, ("d256 short", 80): 1, ("d256 short", 89): 1},
)
SHORT = 128
"""Keys up to here are few: a prompt of 77 tokens wastes less in steps of 16."""
WIDEST = 256
"""Channels of a head. The autoencoder's one head of 512 stays on torch."""
LIBRARIES = {
    "flash": (SDPBackend.FLASH_ATTENTION, can_use_flash_attention),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, can_use_cudnn_attention),
}
"""By implementation, its name in torch, and what says whether it takes some inputs."""


def attention_reference(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """The formula, written out. Shapes as in :func:`attention`; accumulates in the inputs' dtype."""
    q, k, v = (_split_heads(t, heads) for t in (query, key, value))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return _merge_heads(torch.softmax(scores, dim=-1) @ v)


@jit
def attention_kernel(
    q_ptr: tl.tensor,  # [B, M, heads * D]; channels contiguous, as for k and v
    k_ptr: tl.tensor,  # [B, N, heads * D]
    v_ptr: tl.tensor,  # [B, N, heads * D]
    o_ptr: tl.tensor,  # [B, M, heads * D], contiguous
    queries: tl.tensor,  # M
    keys: tl.tensor,  # N
    q_batch: tl.tensor,  # strides
    q_token: tl.tensor,
    k_batch: tl.tensor,
    k_token: tl.tensor,
    v_batch: tl.tensor,
    v_token: tl.tensor,
    scale: tl.tensor,  # log2(e) / sqrt(D)
    HEADS: tl.constexpr,
    D: tl.constexpr,  # known when compiled: its multiples are known to be aligned then
    D1: tl.constexpr,  # D = D1 + D2, padded
    D2: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN: tl.constexpr,  # BN divides N
    BM: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """BM queries of one head, against BN keys at a time."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    d1 = tl.arange(0, D1)
    q_base = q_ptr + batch * q_batch + head * D
    k_base = k_ptr + batch * k_batch + head * D
    v_base = v_ptr + batch * v_batch + head * D
    m_inside = (m < queries)[:, None]
    q1 = tl.load(q_base + m[:, None] * q_token + d1[None, :], mask=m_inside & (d1 < D)[None, :], other=0.0)
    acc1 = tl.zeros([BM, D1], tl.float32)
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        q2 = tl.load(q_base + m[:, None] * q_token + d2[None, :], mask=m_inside & (d2 < D)[None, :], other=0.0)
        acc2 = tl.zeros([BM, D2], tl.float32)
    highest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (tl.program_id(0) + 1) * BM)
    for start in range(0, end, BN):
        n = start + tl.arange(0, BN)
        n_inside = (n < keys)[:, None]
        k1 = tl.load(k_base + n[:, None] * k_token + d1[None, :], mask=n_inside & (d1 < D)[None, :], other=0.0)
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        if D2 > 0:
            k2 = tl.load(k_base + n[:, None] * k_token + d2[None, :], mask=n_inside & (d2 < D)[None, :], other=0.0)
            scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
        scores *= scale
        if not EVEN:
            scores = tl.where(n[None, :] < keys, scores, float("-inf"))
        if CAUSAL:
            scores = tl.where(n[None, :] <= m[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weights, axis=1)
        v1 = tl.load(v_base + n[:, None] * v_token + d1[None, :], mask=n_inside & (d1 < D)[None, :], other=0.0)
        acc1 = tl.dot(weights.to(v1.dtype), v1, acc1 * fade[:, None], input_precision="ieee")
        if D2 > 0:
            v2 = tl.load(v_base + n[:, None] * v_token + d2[None, :], mask=n_inside & (d2 < D)[None, :], other=0.0)
            acc2 = tl.dot(weights.to(v2.dtype), v2, acc2 * fade[:, None], input_precision="ieee")
        highest = higher
    o_base = o_ptr + (batch * queries + m[:, None]) * (HEADS * D) + head * D
    element = o_ptr.dtype.element_ty
    tl.store(o_base + d1[None, :], (acc1 / total[:, None]).to(element), mask=m_inside & (d1 < D)[None, :])
    if D2 > 0:
        tl.store(o_base + d2[None, :], (acc2 / total[:, None]).to(element), mask=m_inside & (d2 < D)[None, :])


def plan_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool, architecture: int) -> Plan:
    """The launch for tensors with contiguous channels and any other strides."""
    batch, queries, channels = query.shape
    keys, head_dim = key.shape[1], channels // heads
    tile = TILES.tile(shape_class(head_dim, keys), architecture)
    out = like_first(query)
    first, second = _parts(head_dim)
    arguments = {
        "q_ptr": query, "k_ptr": key, "v_ptr": value, "o_ptr": out, "queries": queries, "keys": keys,
        "q_batch": query.stride(0), "q_token": query.stride(1), "k_batch": key.stride(0), "k_token": key.stride(1),
        "v_batch": value.stride(0), "v_token": value.stride(1), "scale": 1.4426950408889634 / head_dim**0.5,
        "HEADS": heads, "D": head_dim, "D1": first, "D2": second, "CAUSAL": causal,
        "EVEN": keys % tile.sizes["BN"] == 0,
    }  # fmt: skip
    return Plan(out, (Launch(attention_kernel, (cdiv(queries, tile.sizes["BM"]), heads, batch), arguments, tile),))


def launch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
    """:func:`attention` by the kernel."""
    return plan_attention(query, key, value, heads, causal, planned_for(query)).run()


def torch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
    """:func:`attention` in torch's operators: on CUDA the library behind them that torch prefers."""
    q, k, v = (_split_heads(t, heads) for t in (query, key, value))
    return _merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def library_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool, library: str) -> Tensor:
    """:func:`torch_attention` by one of :data:`LIBRARIES`, which takes the inputs: ask :func:`unfit_library` first."""
    order = [LIBRARIES[library][0]]
    if not torch.compiler.is_compiling():
        # The order is the whole process's: what another thread runs meanwhile may be nothing for this library. While
        # a network is traced there is nobody else, and torch refuses what does not fit.
        order += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return torch_attention(query, key, value, heads, causal)


def unfit_library(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool, library: str) -> str:
    """What keeps the inputs from one of :data:`LIBRARIES`, as torch sees it; empty if nothing."""
    if torch.compiler.is_compiling():  # torch cannot be asked while it traces
        return unfit_channels(query, key, value)
    q, k, v = (_split_heads(t, heads) for t in (query, key, value))
    if LIBRARIES[library][1](SDPAParams(q, k, v, None, 0.0, causal, False)):
        return ""
    kind = f"{q.shape[2]} x {k.shape[2]}, {heads} x {q.shape[3]}, {query.dtype}{', causal' * causal}"
    return f"{library} does not take {kind} on {query.device}"


_attention = custom_op("attention", launch_attention, torch_attention, like_first)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head attention.

    Args:
        query: [B, M, heads * D].
        key: [B, N, heads * D].
        value: [B, N, heads * D].
        heads: number of heads; must divide the channel axis.
        causal: whether query i sees the keys 0 .. i alone (then M = N).

    Returns:
        [B, M, heads * D], dtype of the inputs.
    """
    if may_run(query):
        inputs, kind = (query, key, value), shape_class(query.shape[-1] // heads, key.shape[1])
        by_library = partial(unfit_library, query, key, value, heads, causal)
        implementation = choose(TILES, kind, inputs, unfit_heads(inputs, heads), by_library)
        if implementation == "triton":
            return _attention(query, key, value, heads, causal)
        if implementation != "torch":
            return library_attention(query, key, value, heads, causal, implementation)
    return torch_attention(query, key, value, heads, causal)


def unfit_heads(inputs: tuple[Tensor, ...], heads: int) -> str:
    """What keeps queries, keys and values [..., heads * D] from a kernel; empty if nothing."""
    head_dim = inputs[0].shape[-1] // heads
    if head_dim > WIDEST:
        return f"a head has {head_dim} channels, at most {WIDEST} fit"
    return unfit_channels(*inputs)


def shape_class(head_dim: int, keys: int) -> str:
    """Of the tiles for heads of so many channels and so many keys."""
    width = next((limit for limit in (64, 128) if head_dim <= limit), 256)
    return f"d{width} short" if keys <= SHORT else f"d{width}"


def _parts(head_dim: int) -> tuple[int, int]:
    """Two powers of two that hold a head together; the second is 0 where the first does alone. None is below 16."""
    whole = next_power_of_2(head_dim)
    rest = head_dim - whole // 2
    if whole <= 32 or rest > whole // 4:
        return max(whole, 16), 0
    return whole // 2, max(next_power_of_2(rest), 16)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    batch, length, channels = x.shape
    return x.view(batch, length, heads, channels // heads).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head_dim)
