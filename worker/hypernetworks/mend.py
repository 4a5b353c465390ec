"""MEND: a small network that turns a gradient's factors into a better update for one layer.

Mitchell et al., "Fast Model Editing at Scale", ICLR 2022, section 3. Rows (u, v) are normalized per
dimension, passed through residual low-rank blocks that start as the identity, split, and scaled back. The
update is -step * sum of ṽᵀũ with a learned step, so at the start the editor is plain gradient descent.

Must not know where the rows come from or what the update is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salem.deltas.terms import LowRank

_TOLERANCE = 1e-3  # relative Frobenius error of a compressed gradient


@dataclass(frozen=True)
class Factors:
    """A sum of weight gradients in low-rank form: vᵀu is the gradient [d_out, d_in], one row per rank."""

    u: Tensor  # [r, d_in]
    v: Tensor  # [r, d_out]


def aggregate(u: Tensor, v: Tensor, tolerance: float = _TOLERANCE) -> Factors:
    """The low-rank form of the gradient vᵀu summed over k tokens, with the fewest singular pairs.

    Args:
        u: [k, d_in]
        v: [k, d_out]
        tolerance: largest relative Frobenius norm of the dropped part.
    """
    q_u, r_u = torch.linalg.qr(u.T.double())  # [d_in, m], [m, k]
    q_v, r_v = torch.linalg.qr(v.T.double())
    left, scale, right = torch.linalg.svd(r_v @ r_u.T, full_matrices=False)
    tail = scale.square().flip(0).cumsum(0).flip(0).sqrt()  # norm of what is cut off from each pair on
    rank = max(1, int((tail > tolerance * tail[0]).sum()))
    root = scale[:rank].sqrt()
    return Factors(
        u=((q_u @ right.T[:, :rank]) * root).T.to(u.dtype).contiguous(),
        v=((q_v @ left[:, :rank]) * root).T.to(v.dtype).contiguous(),
    )


class ResidualBlock(nn.Module):
    """x + max(0, A B x + c), where A and c start at zero, so it starts as the identity (MEND, equation 4)."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.down = nn.Parameter(torch.randn(rank, width, generator=generator) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[r, width] -> [r, width]"""
        # clamp, not relu: its gradient at exactly zero, where every unit starts, is one.
        return x + (x @ self.down.T @ self.up.T + self.bias).clamp(min=0)


class MendEditor(nn.Module):
    """The editor of one layer: rows (u, v) of aggregated gradients -> a low-rank update."""

    mean: Tensor  # [d_in + d_out]
    scale: Tensor  # [d_in + d_out]

    def __init__(self, d_in: int, d_out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        width = d_in + d_out
        self.d_in = d_in
        self.blocks = nn.Sequential(
            ResidualBlock(width, rank, generator), ResidualBlock(width, rank, generator)
        )
        self.log_step = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit_normalizer(self, factors: Factors) -> None:
        """Set the mean and standard deviation per dimension from these rows."""
        rows = torch.cat([factors.u, factors.v], dim=-1)
        spread = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        # A constant dimension gets the typical scale of its half, to avoid a division by zero.
        halves = [spread[: self.d_in], spread[self.d_in :]]
        floor = torch.cat([torch.full_like(half, float(half.mean())) for half in halves]) * 1e-2
        self.scale.copy_(torch.maximum(spread, floor).clamp(min=1e-12))

    def forward(self, factors: Factors) -> LowRank:
        """The update -step * ṽᵀũ as a low-rank term of rank r."""
        rows = torch.cat([factors.u, factors.v], dim=-1)  # [r, d_in + d_out]
        edited = self.blocks((rows - self.mean) / self.scale) * self.scale + self.mean
        u, v = edited[:, : self.d_in], edited[:, self.d_in :]
        return LowRank(a=u, b=-self.log_step.exp() * v.T)
