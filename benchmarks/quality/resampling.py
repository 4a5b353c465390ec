"""Bootstrap intervals: the samples of all seeds are pooled and drawn again with replacement.

Percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Whole samples are drawn, so before and after an
edit stay paired. Does not know what a sample is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
_BOUNDS = (2.5, 97.5)  # percent

Values = NDArray[np.float64]  # [n, k]: k figures of each of n samples
Statistic = Callable[[Values], Values]  # [draws, k] means over samples -> [draws]


def interval(values: Values, statistic: Statistic, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% interval of a function of the samples' means.

    Args:
        values: [n, k] k figures of each of n samples.
        statistic: of the means [draws, k], one number a draw.
    """
    # Equal samples are drawn as one kind. The distribution is the same, and a share has only two kinds.
    kinds, counts = np.unique(values, axis=0, return_counts=True)
    times = rng.multinomial(len(values), counts / len(values), size=DRAWS)  # [draws, kinds]
    low, high = np.percentile(statistic(times @ kinds / len(values)), _BOUNDS)
    return float(low), float(high)


def first(means: Values) -> Values:
    """The mean, as the statistic of a single figure."""
    return means[:, 0]
