"""Trains the scope metric: a linear map that brings equivalent texts together and moves others apart.

The loss is supervised contrastive (Khosla et al., NeurIPS 2020, equation 2). A group is an edit with its
paraphrases, a text with a known paraphrase, or a pass sample with an augmentation; the other groups of a
batch are the negatives. Must not know texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from salem.scope.features import FeatureSpec
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.metric import Metric

SHARP, GENTLE = 0.05, 0.15  # temperatures: with augmentations only, and with known paraphrases
BATCH_GROUPS = 384  # pairs per step
MOST_ALWAYS = 1_024  # most of a job's own texts per step; if there are more, each step draws some groups
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
TOLERATED = 0.005  # share of other texts that may lie closer than an equivalent
_SMALLEST_SPREAD = 1e-6  # of a dimension that is constant


@dataclass(frozen=True)
class Equivalents:
    """The features that a metric learns from."""

    always: Tensor  # [a, f] a job's edits, paraphrases, and augmentations: all, or many, in every step
    groups: Tensor  # [a] int64; equivalents share a number
    first: Tensor  # [p, f] one text of each known pair
    second: Tensor  # [p, f] the other
    temperature: float = SHARP  # of the loss: lower values weigh the hardest pairs more


def new_metric(
    reading: FeatureSpec, equivalents: Equivalents, *, width: int, generator: torch.Generator
) -> Metric:
    """A metric before training: standardizes features and projects them at random to `width` dimensions."""
    population = equivalents.first
    if len(population) < 2:  # one text or none has no spread
        population = torch.cat([equivalents.always, equivalents.first, equivalents.second])
    center, spread = population.mean(0), population.std(0)
    spread = spread.clamp(min=max(float(spread.mean()) * 1e-2, _SMALLEST_SPREAD))
    projection = torch.randn(width, len(center), generator=generator) / len(center) ** 0.5
    return Metric(reading, center, spread, projection.to(center.device), *torch.ones(2, WORD_BUCKETS))


def train_metric(
    metric: Metric, equivalents: Equivalents, *, steps: int, generator: torch.Generator
) -> Metric:
    """Train the projection further.

    A text in several pairs is an equivalent inside each pair, and another text between them.
    """
    device = metric.center.device
    projection = metric.projection.clone().requires_grad_()
    fixed, first, second = (
        metric.standardize(part) for part in (equivalents.always, equivalents.first, equivalents.second)
    )
    optimizer = torch.optim.AdamW([projection], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    offset = int(equivalents.groups.max()) + 1 if len(equivalents.groups) else 0
    for _ in range(steps):
        rows = torch.randperm(len(first), generator=generator)[:BATCH_GROUPS].to(device)
        own = _drawn(equivalents.groups, generator)
        groups = torch.cat([equivalents.groups[own], rows + offset, rows + offset])
        points = F.normalize(torch.cat([fixed[own], first[rows], second[rows]]) @ projection.T, dim=-1)
        optimizer.zero_grad(set_to_none=True)
        contrastive_loss(points, groups, equivalents.temperature).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return replace(metric, projection=projection.detach(), sha256="")


def _drawn(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of whole groups for one step -> [r] int64. The loss compares each row with each."""
    if len(groups) <= MOST_ALWAYS:
        return torch.arange(len(groups), device=groups.device)
    order = torch.randperm(int(groups.max()) + 1, generator=generator).to(groups.device)
    sizes = torch.bincount(groups, minlength=len(order))[order]
    chosen = torch.zeros(len(order), dtype=torch.bool, device=groups.device)
    chosen[order] = (sizes.cumsum(0) <= MOST_ALWAYS) | (sizes.cumsum(0) == sizes)  # one group at least
    return chosen[groups].nonzero()[:, 0]


def coverage(first: Tensor, second: Tensor, others: Tensor) -> float:
    """The share of pairs that lie closer than all but a few other texts.

    Args:
        first, second: [p, m] points of equivalent texts.
        others: [q, m] points of texts that are equivalent to none of them.
    """
    if not len(first) or not len(others):
        return 1.0
    tolerated = max(1, int(TOLERATED * len(others)))
    nearest = (first @ others.T).topk(min(tolerated, len(others)), dim=-1).values[:, -1]
    return float(((first * second).sum(-1) > nearest).float().mean())


def contrastive_loss(points: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Mean of -log p(an equivalent | all others) over points [n, m] on the unit sphere, in groups [n]."""
    itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
    likeness = (points @ points.T / temperature).masked_fill(itself, float("-inf"))
    alike = (groups[:, None] == groups[None]) & ~itself
    log_share = likeness.log_softmax(-1).masked_fill(~alike, 0.0)
    counts = alike.sum(-1)
    return -(log_share.sum(-1)[counts > 0] / counts[counts > 0]).mean()
