"""The ridge solve that turns wished changes of a layer's output into a change of its weight.

Tan et al., "Massive Editing for Large Language Models via Meta Learning" (MALMEN), ICLR 2024, section 3.2,
equation 5: S = (UᵀU + λI)⁻¹ Uᵀ V', which replaces MEND's sum of updates. Does not know where the wishes
come from.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_operator(u: Tensor, penalty: float) -> Tensor:
    """(UᵀU + λI)⁻¹ Uᵀ, with λ = `penalty` times the mean squared norm of a row.

    Args:
        u: [k, d_in] inputs of the layer.
        penalty: larger than zero; relative, so that one grid serves layers of any scale.

    Returns:
        [d_in, k]; solved on the smaller side: the two sides agree (push-through identity).
    """
    rows = u.double()
    k, d_in = rows.shape
    added = penalty * rows.square().sum(-1).mean()
    if k <= d_in:
        gram = rows @ rows.T + added * torch.eye(k, dtype=rows.dtype, device=rows.device)
        return torch.linalg.solve(gram, rows).T.to(u.dtype)
    moment = rows.T @ rows + added * torch.eye(d_in, dtype=rows.dtype, device=rows.device)
    return torch.linalg.solve(moment, rows.T).to(u.dtype)


def ridge_update(u: Tensor, wished: Tensor, penalty: float) -> Tensor:
    """The weight change [d_out, d_in] that comes nearest to adding `wished` [k, d_out] at u [k, d_in]."""
    return (ridge_operator(u, penalty) @ wished).T
