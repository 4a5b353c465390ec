"""The metric of scopes: a linear map after which equivalents lie close and everything else far apart.

Trained by a supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2) on groups of equivalent
texts: an edit with its paraphrases, a pass sample with its rewordings; the other groups of a batch are the
negatives. Knows features and groups only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.05
BATCH_GROUPS = 256  # groups of pass samples per step
STEPS = 100
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
_SMALLEST_SPREAD = 1e-6  # of a dimension in which all features are equal


@dataclass(frozen=True)
class Metric:
    """Standardise, project, normalise: features [n, f] -> points on the unit sphere [n, m]."""

    centre: Tensor  # [f]
    spread: Tensor  # [f]
    projection: Tensor  # [m, f]

    def place(self, features: Tensor) -> Tensor:
        return F.normalize(self.standardise(features) @ self.projection.T, dim=-1)

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.centre) / self.spread


def train_metric(
    always: Tensor,
    always_groups: Tensor,
    views: tuple[Tensor, Tensor],
    *,
    width: int,
    generator: torch.Generator,
) -> Metric:
    """Train the metric.

    Args:
        always: [a, f] features that take part in every step: edits, paraphrases and their rewordings.
        always_groups: [a] int64; equivalents share a number.
        views: two [p, f]: pass samples and one rewording of each, in the same order.
        width: m, dimensions of the metric.
    """
    # One pass sample or none has no spread.
    population = views[0] if len(views[0]) > 1 else torch.cat([always, *views])
    centre, spread = population.mean(0), population.std(0)
    spread = spread.clamp(min=max(float(spread.mean()) * 1e-2, _SMALLEST_SPREAD))
    metric = Metric(centre, spread, torch.empty(width, len(centre), device=centre.device))
    start = torch.randn(width, len(centre), generator=generator) / len(centre) ** 0.5
    projection = start.to(centre.device).requires_grad_()
    fixed, first, second = (metric.standardise(part) for part in (always, *views))
    optimizer = torch.optim.AdamW([projection], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    offset = int(always_groups.max()) + 1
    for _ in range(STEPS):
        rows = torch.randperm(len(first), generator=generator)[:BATCH_GROUPS].to(centre.device)
        groups = torch.cat([always_groups, rows + offset, rows + offset])
        points = F.normalize(torch.cat([fixed, first[rows], second[rows]]) @ projection.T, dim=-1)
        optimizer.zero_grad(set_to_none=True)
        contrastive_loss(points, groups).backward()
        optimizer.step()
    return Metric(centre, spread, projection.detach())


def contrastive_loss(points: Tensor, groups: Tensor) -> Tensor:
    """Mean of -log p(an equivalent | all others) over points [n, m] on the unit sphere, in groups [n]."""
    itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
    likeness = (points @ points.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    alike = (groups[:, None] == groups[None]) & ~itself
    log_share = likeness.log_softmax(-1).masked_fill(~alike, 0.0)
    counts = alike.sum(-1)
    return -(log_share.sum(-1)[counts > 0] / counts[counts > 0]).mean()
