"""Which lanes a row runs in at one step, and their weights.

Classifier-free guidance (Ho and Salimans 2022, equation 6, in the scale that Imagen and Stable Diffusion publish):

    F = F_negative + g (F_positive - F_negative) = (1 - g) F_negative + g F_positive
"""

from __future__ import annotations

import math


def lane_weights(guidance: float) -> tuple[float, ...]:
    """Weights of the (negative, positive) lanes, or of (positive,) alone.

    A scale of 1 gives the negative lane weight 0, and a lane of weight 0 is not run. A smaller scale also means no
    guidance, as in the published pipelines.

    Raises:
        ValueError: the scale is not a finite number.
    """
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be a finite number, got {guidance}")
    return (1.0,) if guidance <= 1.0 else (1.0 - guidance, guidance)
