"""Learning-rate schedules as pure functions of the step, so that nothing of them needs saving."""

from __future__ import annotations

import math


def rate_factor(kind: str, step: int, total_steps: int, warmup_ratio: float) -> float:
    """What the base rate is multiplied with at a step (0-based).

    Args:
        kind: `cosine_warmup` and `linear_warmup` rise linearly over the first `warmup_ratio` of the steps and then fall to 0 by a half
            cosine or a straight line; `cosine` falls from the start (Loshchilov & Hutter 2017); `constant` stays at 1.
    """
    warmup = round(total_steps * warmup_ratio) if kind.endswith("_warmup") else 0
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if kind.startswith("cosine"):
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if kind.startswith("linear"):
        return max(0.0, 1 - progress)
    return 1.0
