"""Proportions of samples with 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from salem.records import Proportion

_Z = 1.959963984540054  # 97.5% quantile of the normal distribution


def proportion(hits: Sequence[bool]) -> Proportion | None:
    """The share of hits with its Wilson score interval (Wilson 1927); None if there are no samples."""
    n = len(hits)
    if n == 0:
        return None
    share = sum(hits) / n
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and 1, a bound equals the share except for rounding.
    return Proportion(
        value=share,
        low=min(share, max(0.0, center - half)),
        high=max(share, min(1.0, center + half)),
        count=n,
    )


def paired_drop(before: Sequence[bool], after: Sequence[bool]) -> Proportion | None:
    """Share correct before minus share correct after on the same samples; None if there are no samples.

    The interval is the adjusted Wald interval for paired proportions (Bonett and Price 2012, section 2). It
    adds one to each kind of change, so that "nothing changed" on few samples does not claim certainty.
    """
    n = len(before)
    if n == 0:
        return None
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = _Z * sqrt((p_lost + p_won - (p_lost - p_won) ** 2) / (n + 2))
    middle = p_lost - p_won
    return Proportion(
        value=(lost - won) / n, low=max(-1.0, middle - half), high=min(1.0, middle + half), count=n
    )
