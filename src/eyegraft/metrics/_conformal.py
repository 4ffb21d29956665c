"""How wide an interval must be to cover new samples as often as it says (split conformal prediction)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from eyegraft.errors import DataError
from eyegraft.metrics._calibration import refuse_rows


def conformal_quantile(errors: ArrayLike, level: float) -> float | None:
    """The half-width that covers a new sample with probability `level` or more, None where there are fewer than `least` errors.

    It is the ceil((n + 1) level)-th smallest error (Vovk, Gammerman & Shafer 2005, Algorithmic learning in a random world; Lei et al. 2018,
    Distribution-free predictive inference for regression, theorem 2.2). The promise holds where new samples come as these came: not for
    stations or years unlike them, so measure the coverage there.

    Args:
        errors: [N] absolute errors on samples that were not trained on, or these divided by each sample's predicted standard deviation
            (Lei et al. 2018, section 5.2); the interval is then quantile times standard deviation to either side.
        level: between 0 and 1.

    Raises:
        DataError: an error that is negative or not finite, or a level outside (0, 1).
    """
    found = np.asarray(errors, dtype=np.float64).reshape(-1)
    refuse_rows(~(np.isfinite(found) & (found >= 0)), "errors", "finite, 0 or more")
    rank = _rank(found.size, level)
    return float(np.partition(found, rank - 1)[rank - 1]) if rank <= found.size else None


def least(level: float) -> int:
    """The fewest errors that `level` can be had from: 9 for 0.9, 19 for 0.95."""
    size = max(1, math.ceil(level / (1 - level)) - 1)  # rounding may miss the first by one
    while _rank(size, level) > size:
        size += 1
    return size


def _rank(size: int, level: float) -> int:
    if not 0 < level < 1:
        raise DataError(f"level {level}", "a share between 0 and 1", "0.9 covers nine of ten")
    return math.ceil((size + 1) * level - 1e-9)  # 10 * 0.9 must not become 9.000000000000002
