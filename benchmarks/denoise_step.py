"""Whole forwards of published networks with random weights: ``python -m benchmarks.denoise_step``, on a CUDA device.

Ours (kernels, channels-last), the same network in torch's operators, and that compiled; and SDXL at 1024 x 1024 from
noise to pixels. ``--dry-run`` needs no GPU: it runs every forward on meta tensors, which checks configs and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.report import RESULTS, Target, console, facts, print_rows, print_targets, save
from benchmarks.timing import device, milliseconds
from kernels.backend import OPS, chosen, selected
from kernels.solver_step import solver_step
from models.layout import channels_last
from models.mmdit import MMDiT
from models.spec.mmdit import MMDiTSpec
from models.spec.unet import UNetSpec
from models.spec.vae import VAESpec
from models.unet import UNet
from models.vae import VAE

SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SVD_XT = {
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
    "num_attention_heads": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
}
SD3_MEDIUM = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SDXL_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.13025,
}
STEPS, PICTURES = 20, 5
LIMITS = {"SDXL 1024, CFG": (1.12, 1.0), "SVD-XT 576 x 1024, CFG": (1.35, 1.1)}
"""How many times faster than eager and than compiled the forward is to be."""
MLPERF = 2.40
"""Pictures/s of MLPerf Inference's SDXL on an H200. It runs fp8 engines, 20 steps at guidance 8, with text encoders, in
batches as large as fit; here it is bf16, without text encoders, one picture at a time."""
TORCH = dict.fromkeys(OPS, "torch")
LIMIT = 5e-2
"""Largest difference to torch, relative to the largest output: bf16, through the whole network."""


@dataclass(frozen=True)
class Case:
    """One forward."""

    name: str
    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    context: tuple[int, ...]
    vector: int

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        """x, times, context and vector of random numbers."""
        batch, kind = self.x[0], {"device": device, "dtype": torch.bfloat16}
        times = torch.full((batch,), 500.0, device=device)
        x, context = torch.randn(self.x, **kind), torch.randn(batch, *self.context, **kind)
        return x, times, context, torch.randn(batch, self.vector, **kind)


CASES = (
    Case("SDXL 1024, CFG", lambda: UNet(UNetSpec.from_config(SDXL)), (2, 4, 128, 128), (77, 2048), 2816),
    Case("SDXL-Turbo 512", lambda: UNet(UNetSpec.from_config(SDXL)), (1, 4, 64, 64), (77, 2048), 2816),
    Case(
        "SD3-medium 1024, CFG", lambda: MMDiT(MMDiTSpec.from_config(SD3_MEDIUM)), (2, 16, 128, 128), (333, 4096), 2048
    ),
    Case("SVD-XT 576 x 1024, CFG", lambda: UNet(UNetSpec.from_config(SVD_XT)), (2, 25, 8, 72, 128), (1, 1024), 768),
)


def main(
    dry_run: Annotated[bool, typer.Option(help="Run on meta tensors, on any machine, and measure nothing.")] = False,
    only: Annotated[str, typer.Option(help="Cases whose name holds this.")] = "",
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "denoise_step.json",
) -> None:
    """Measure forwards, and SDXL from noise to pixels."""
    cases = [case for case in CASES if only in case.name]
    if dry_run:
        for case in cases:
            shape_of(case)
        return
    if not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device; --dry-run needs none")
    rows = [measure(case) for case in cases]
    print_rows("Milliseconds of one forward", tuple(rows[0]), [tuple(row.values()) for row in rows])
    per_second = pictures_per_second() if not only else math.nan
    targets = [
        Target(f"{row['case']}: {name} / ours", row[name] / row["ours"], limit, True)
        for row in rows
        if row["case"] in LIMITS
        for name, limit in zip(("eager", "compiled"), LIMITS[row["case"]], strict=True)
    ]
    targets.append(Target("SDXL 1024, 20 Euler steps, CFG: pictures/s", per_second, MLPERF, True))
    print_targets(targets)
    outcome = {"rows": rows, "targets": [target.to_json() for target in targets], "kernels": chosen()}
    save(out, "denoise_step", {**facts(), "device": device(), **outcome})


def shape_of(case: Case) -> None:
    """Run a case on meta tensors."""
    with torch.device("meta"):
        network = case.make().to(torch.bfloat16).eval()
    result = network(*case.inputs("meta"))
    expected = (*case.x[:-3], network.spec.out_channels, *case.x[-2:])
    assert tuple(result.shape) == expected, (result.shape, expected)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    console.print(f"{case.name}: {parameters / 1e9:.2f} G parameters, {case.x} -> {expected}")


@torch.inference_mode()
def measure(case: Case) -> dict[str, Any]:
    """One case in milliseconds, by ours, eager torch and compiled torch, each in its own layout of memory."""
    torch.manual_seed(0)
    network, inputs = on_gpu(case.make()), case.inputs("cuda")
    with selected(TORCH):
        eager = milliseconds(lambda: network(*inputs))
        expected = network(*inputs)
        compiled_network = torch.compile(network)
        compiled = milliseconds(lambda: compiled_network(*inputs))
    channels_last(network)
    ours = milliseconds(lambda: network(*inputs))
    difference = float((network(*inputs) - expected).abs().max() / expected.abs().max())
    if not difference < LIMIT:
        raise RuntimeError(f"{case.name}: kernels and torch differ by {difference:.1e}")
    return {"case": case.name, "ours": ours, "eager": eager, "compiled": compiled, "difference": difference}


@torch.inference_mode()
def pictures_per_second() -> float:
    """SDXL from noise to pixels at 1024 x 1024: 20 Euler steps of two lanes, then the decoder."""
    torch.manual_seed(0)
    case = CASES[0]
    network, vae = on_gpu(case.make()), on_gpu(VAE(VAESpec.from_config(SDXL_VAE)))
    channels_last(network)
    channels_last(vae)
    _, times, context, vector = case.inputs("cuda")
    one = torch.ones(1, device="cuda")
    weights = torch.tensor([[-6.5, 7.5]], device="cuda")
    sigmas = torch.linspace(14.6, 0.0, STEPS + 1).tolist()

    def picture() -> Tensor:
        state = sigmas[0] * torch.randn(1, 1, 4, 128, 128, device="cuda")
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            scaled = (state[:, 0] / (sigma**2 + 1.0) ** 0.5).expand(2, -1, -1, -1)
            outputs = network(scaled, times, context, vector)[None]
            # x' = (after / sigma) x + (1 - after / sigma) D, D = x - sigma F
            a, b = (share * one.reshape(1, 1) for share in (after / sigma, 1.0 - after / sigma))
            numbers = (one, -sigma * one, a[..., None], b, 0.0 * one)
            state = solver_step(state, outputs, weights, *numbers, torch.zeros_like(state[:, 0]))
        return vae.decode(state[:, 0])

    return 1e3 / milliseconds(picture, PICTURES)


def on_gpu(network: nn.Module) -> nn.Module:
    """In bf16, without gradients."""
    return network.to("cuda", torch.bfloat16).eval().requires_grad_(False)


if __name__ == "__main__":
    typer.run(main)
