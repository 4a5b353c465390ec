"""Compresses a trained update: low-rank factors if they reproduce it, else the dense matrix."""

from __future__ import annotations

import torch

from salem.deltas.terms import Dense, LowRank
from salem.records import Layer

TOLERANCE = 1e-3  # relative Frobenius error of the factors


def compress(term: LowRank | Dense, layer: Layer, tolerance: float = TOLERANCE) -> LowRank | Dense:
    """The smallest factors within `tolerance` of the update, or the dense matrix if it takes fewer numbers.

    The truncated singular value decomposition is the best approximation of each rank (Eckart and Young 1936).
    """
    dense = term.dense()
    left, scale, right = torch.linalg.svd(dense.double(), full_matrices=False)
    lost = scale.square().flip(0).cumsum(0).flip(0).sqrt()  # norm of what is cut off from each pair on
    rank = max(1, int((lost > tolerance * lost[0]).sum()))
    if rank >= break_even_rank(layer):
        return Dense(dense)
    root = scale[:rank].sqrt()
    return LowRank(
        a=(root[:, None] * right[:rank]).to(dense.dtype).contiguous(),
        b=(left[:, :rank] * root).to(dense.dtype).contiguous(),
    )


def break_even_rank(layer: Layer) -> int:
    """The rank at which factors take as many numbers, and as much work, as the dense matrix."""
    return layer.d_in * layer.d_out // (layer.d_in + layer.d_out)
