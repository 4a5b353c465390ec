"""Projected updates: what they leave unchanged and what they can still change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salem.deltas.terms import LowRank
from salem.errors import EditFailed
from worker.numerics.null_space import null_space

D_IN, D_OUT = 12, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def test_outputs_on_the_removed_span_stay_the_same() -> None:
    kept = drawn(40, 3) @ drawn(3, D_IN, seed=1)  # inputs of rank 3
    term = LowRank(drawn(2, D_IN, seed=2), drawn(D_OUT, 2, seed=3))
    projected = null_space(moment(kept), 3).project(term)
    assert term(kept).abs().max() > 1
    assert projected(kept).abs().max() < 1e-4
    assert projected.rank == term.rank and torch.equal(projected.b, term.b)


def test_inputs_orthogonal_to_the_removed_span_are_edited_in_full() -> None:
    kept = drawn(40, 3) @ drawn(3, D_IN, seed=1)
    space = null_space(moment(kept), 3)
    term = LowRank(drawn(2, D_IN, seed=2), drawn(D_OUT, 2, seed=3))
    x = drawn(6, D_IN, seed=4)
    orthogonal = x - x @ space.directions.T @ space.directions
    torch.testing.assert_close(space.project(term)(orthogonal), term(orthogonal), rtol=1e-4, atol=1e-4)


def test_rank_zero_removes_nothing() -> None:
    term = LowRank(drawn(2, D_IN), drawn(D_OUT, 2))
    space = null_space(moment(drawn(40, D_IN, seed=1)), 0)
    assert space.directions.shape == (0, D_IN)
    assert torch.equal(space.project(term).a, term.a)


@pytest.mark.parametrize("asked", [4, D_IN, 4_096])
def test_directions_are_orthonormal_leading_and_leave_at_least_one(asked: int) -> None:
    second = moment(drawn(60, D_IN) * torch.logspace(1, -1, D_IN))
    directions = null_space(second, asked).directions
    assert len(directions) == min(asked, D_IN - 1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(len(directions)), rtol=0, atol=1e-5)
    spent = ((directions @ second) * directions).sum(-1)
    leading = torch.linalg.eigvalsh(second).flip(0)[: len(directions)]
    torch.testing.assert_close(spent, leading, rtol=1e-3, atol=1e-4)


def test_directions_that_no_input_has_are_not_removed() -> None:
    term = LowRank(drawn(2, D_IN), drawn(D_OUT, 2))
    assert torch.equal(null_space(torch.zeros(D_IN, D_IN), 8).project(term).a, term.a)
    assert len(null_space(moment(drawn(40, 3) @ drawn(3, D_IN, seed=1)), 8).directions) == 3


def test_rank_zero_needs_no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", None)
    assert null_space(moment(drawn(40, D_IN)), 0).directions.shape == (0, D_IN)


def test_a_moment_that_is_not_finite_is_refused() -> None:
    with pytest.raises(EditFailed, match="overflow") as failed:
        null_space(torch.full((D_IN, D_IN), float("inf")), 3)
    assert "null_space_rank" in str(failed.value.remedy)
