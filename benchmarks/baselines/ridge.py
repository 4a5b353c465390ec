"""The ridge solve that turns wanted shifts of a layer's output into an update of its weight.

Tan et al., "Massive Editing for Large Language Models via Meta Learning" (MALMEN), ICLR 2024, section 3.2,
equation 5: S = (UᵀU + λI)⁻¹ Uᵀ V', which replaces MEND's sum of updates. Must not know how the
shifts were computed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_operator(u: Tensor, penalty: float) -> Tensor:
    """(UᵀU + λI)⁻¹ Uᵀ, with λ = `penalty` times the mean squared norm of a row.

    Args:
        u: [k, d_in] inputs of the layer.
        penalty: positive; relative, so that one grid fits layers of any scale.

    Returns:
        [d_in, k], from the smaller of two equivalent systems (push-through identity).
    """
    rows = u.double()
    k, d_in = rows.shape
    added = penalty * rows.square().sum(-1).mean()
    if k <= d_in:
        gram = rows @ rows.T + added * torch.eye(k, dtype=rows.dtype, device=rows.device)
        return torch.linalg.solve(gram, rows).T.to(u.dtype)
    moment = rows.T @ rows + added * torch.eye(d_in, dtype=rows.dtype, device=rows.device)
    return torch.linalg.solve(moment, rows.T).to(u.dtype)


def ridge_update(u: Tensor, shifts: Tensor, penalty: float) -> Tensor:
    """The weight update [d_out, d_in] that best adds `shifts` [k, d_out] to the outputs at u [k, d_in]."""
    return (ridge_operator(u, penalty) @ shifts).T
