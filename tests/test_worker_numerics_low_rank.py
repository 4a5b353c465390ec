"""Compression: the actual rank, the requested tolerance, and no factors that cost more than the matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salem.deltas.terms import Dense, LowRank
from salem.records import Layer
from worker.numerics.low_rank import break_even_rank, compress

LAYER = Layer(path="l.0.down", stack="l", block=0, matrix="down", d_in=30, d_out=20, transposed=False)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: LowRank | Dense, expected: Tensor) -> float:
    return float((found.dense() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_a_low_rank_update_is_recovered_at_its_rank(rank: int) -> None:
    update = drawn(20, rank) @ drawn(rank, 30, seed=1)
    for term in (Dense(update), LowRank(drawn(rank, 30, seed=1), drawn(20, rank))):
        found = compress(term, LAYER)
        assert isinstance(found, LowRank) and found.rank == rank and found.fits(LAYER)
        assert relative_error(found, update) < 1e-5


def test_needless_ranks_are_removed() -> None:
    a, b = drawn(2, 30), drawn(20, 2, seed=1)
    found = compress(LowRank(torch.cat([a, a, a]), torch.cat([b, b, b], dim=1)), LAYER)
    assert found.rank == 2
    assert relative_error(found, 3 * b @ a) < 1e-5


def test_an_update_of_full_rank_stays_a_matrix() -> None:
    update = drawn(20, 30)
    found = compress(Dense(update), LAYER)
    assert isinstance(found, Dense) and torch.equal(found.weight, update)


def test_factors_are_taken_only_below_the_break_even_rank() -> None:
    assert break_even_rank(LAYER) == 12
    assert isinstance(compress(Dense(drawn(20, 12) @ drawn(12, 30, seed=1)), LAYER), Dense)


@pytest.mark.parametrize("tolerance", [0.5, 0.05, 1e-3])
def test_the_tolerance_is_kept_with_the_fewest_pairs(tolerance: float) -> None:
    left, right = (torch.linalg.qr(drawn(size, 10, seed=size))[0] for size in (20, 30))
    scale = torch.logspace(0, -4, 10)
    update = (left * scale) @ right.T
    found = compress(Dense(update), LAYER, tolerance)
    assert relative_error(found, update) <= tolerance * 1.001
    assert found.rank is not None
    assert scale[found.rank - 1 :].norm() / scale.norm() > tolerance, "one pair fewer would have done"


def test_a_zero_update_stays_zero() -> None:
    found = compress(Dense(torch.zeros(20, 30)), LAYER)
    assert isinstance(found, LowRank) and found.rank == 1 and not found.dense().any()
