"""Null-space projection: an update that does not respond to the main directions of pass samples' inputs.

AlphaEdit (Fang et al., ICLR 2025), section 3.2: an update times P leaves the layer's output unchanged for
every input in the span that P removes. Here the span is that of the leading principal directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salem.deltas.terms import LowRank
from salem.errors import EditFailed

_NEGLIGIBLE = 1e-6  # of the largest eigenvalue: float32 noise in a direction that no input has


@dataclass(frozen=True)
class NullSpace:
    """The orthogonal complement of a subspace of a layer's inputs."""

    directions: Tensor  # [k, d_in], orthonormal rows; k may be 0

    def project(self, term: LowRank) -> LowRank:
        """The term without its response to the removed directions."""
        return LowRank(a=term.a - (term.a @ self.directions.T) @ self.directions, b=term.b)


def null_space(second_moment: Tensor, rank: int) -> NullSpace:
    """The complement of the `rank` leading eigenvectors of the inputs' second moment [d_in, d_in].

    Directions that no input has are never removed: they need no protection, and an edit may use them.

    Raises:
        EditFailed: the moment is not finite.
    """
    if not rank:
        return NullSpace(second_moment.new_zeros(0, len(second_moment), dtype=torch.float32))
    if not second_moment.isfinite().all():
        raise EditFailed(
            "The layer's inputs on pass samples overflow float32.",
            remedy="Name another layer in options.layer, or set options.null_space_rank to 0.",
        )
    spent, vectors = torch.linalg.eigh(second_moment.double())  # ascending eigenvalues
    present = int((spent > _NEGLIGIBLE * spent[-1]).sum())
    rank = min(rank, present, second_moment.shape[0] - 1)
    return NullSpace(vectors.T.flip(0)[:rank].to(torch.float32).contiguous())
