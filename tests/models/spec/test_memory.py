"""What stays on which device, for the published systems."""

from __future__ import annotations

import pytest

from models.spec.memory import DEVICE_GB, bytes_saved, plan_memory

# Millions of parameters, as counted in the published files.
SDXL = {"unet": 2567, "vae": 84, "text_encoder": 123, "text_encoder_2": 695}
SVD = {"unet": 1525, "vae": 98, "image_encoder": 632}
SD3 = {"transformer": 2028, "vae": 84, "text_encoder": 124, "text_encoder_2": 695, "text_encoder_3": 4762}
SD35_LARGE = {**SD3, "transformer": 8057}

HELPS = "; T5 in 8 bits: all stays"
LEAVE = "encoders leave after use"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (SDXL, [LEAVE, "all stays", "all stays", "all stays", "all stays"]),
        (SVD, ["all stays"] * 5),
        (SD3, ["encoders too large", LEAVE + HELPS, "all stays", "all stays", "all stays"]),
        (SD35_LARGE, ["denoiser and encoders too large", "denoiser too large", LEAVE, "all stays", "all stays"]),
    ],
)
def test_the_published_systems(parts: dict[str, int], said: list[str]) -> None:
    sizes = {part: millions * 10**6 for part, millions in parts.items()}
    found = [str(plan_memory(sizes, gb * 10**9)) for gb in DEVICE_GB]
    assert found == said


def test_who_stays_when_not_all_can() -> None:
    plan = plan_memory({"unet": 20, "vae": 10, "text_encoder": 10}, 100)
    assert plan_memory({"unet": 20, "vqvae": 30}, 100).leaves == ("autoencoder",)
    assert (plan.stays, plan.leaves, plan.too_large) == (("denoiser", "autoencoder"), ("encoders",), ())
    assert plan_memory({"unet": 20, "vae": 10, "text_encoder": 10}, 115).leaves == ()
    assert plan_memory({"unet": 20, "vae": 10, "text_encoder": 10}, 115, bytes_each=4).too_large == ()
    assert plan_memory({"unet": 20, "vae": 10, "text_encoder": 10}, 114, bytes_each=4).too_large == ("denoiser",)


def test_t5_in_8_bits_is_proposed_only_where_it_changes_something() -> None:
    def helps(device_bytes: int, **more: int) -> bool:
        plan = plan_memory({"transformer": 10, "vae": 0, "text_encoder": 0, **more}, device_bytes)
        return plan.with_eight_bit_t5 is not None

    assert not helps(60, text_encoder_3=10), "all stays as it is"
    assert helps(50, text_encoder_3=10), "all would stay"
    assert not helps(40, text_encoder_3=10), "it would leave all the same"
    assert helps(50, text_encoder_3=20), "it would run"
    assert not helps(50, text_encoder_3=40), "it would not"
    assert not helps(50, text_encoder_2=10), "there is none"


def test_with_t5_in_8_bits_the_plan_is_the_one_that_was_proposed() -> None:
    parameters = {"transformer": 10, "vae": 0, "text_encoder": 0, "text_encoder_3": 20}
    proposed = plan_memory(parameters, 50)
    assert proposed.too_large == ("encoders",) and str(proposed).endswith("T5 in 8 bits: encoders leave after use")
    assert plan_memory(parameters, 50, eight_bit_t5=True) == proposed.with_eight_bit_t5


def test_what_t5_in_8_bits_saves() -> None:
    sizes = {part: millions * 10**6 for part, millions in SD3.items()}
    assert bytes_saved(sizes) == pytest.approx(4.62e9, rel=1e-3)
    assert bytes_saved(sizes, bytes_each=4) == pytest.approx(14.14e9, rel=1e-3)
    assert bytes_saved({part: millions * 10**6 for part, millions in SDXL.items()}) == 0
