"""Compresses a trained update without losing a correction. Must not know recipes."""

from __future__ import annotations

from salem.deltas.terms import Dense, LowRank
from salem.models.network import Network
from worker.numerics.low_rank import TOLERANCE, compress
from worker.training.loop import Prepared, score_term


def smallest_that_holds(
    network: Network,
    prepared: Prepared,
    term: LowRank | Dense,
    margin: float,
    tolerance: float = TOLERANCE,
) -> LowRank | Dense:
    """The term compressed, or the dense matrix if compression would lose a correction."""
    small = compress(term, prepared.layer, tolerance)
    held = score_term(network, prepared, term, margin).held
    return small if score_term(network, prepared, small, margin).held >= held else Dense(term.dense())
