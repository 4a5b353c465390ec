"""The metric of scopes: its loss against a naive loop, and groups that it has to tell apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worker.metric import TEMPERATURE, Metric, contrastive_loss, train_metric

FEATURES = 24


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_loss(points: Tensor, groups: list[int]) -> float:
    terms = []
    for i, own in enumerate(groups):
        others = [j for j in range(len(groups)) if j != i]
        total = sum(math.exp(float(points[i] @ points[j]) / TEMPERATURE) for j in others)
        shares = [
            float(points[i] @ points[j]) / TEMPERATURE - math.log(total) for j in others if groups[j] == own
        ]
        if shares:
            terms.append(-sum(shares) / len(shares))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("groups", [[0, 0, 1, 1], [0, 0, 0, 1, 2, 1], [5, 5, 7]])
def test_the_loss_is_the_mean_over_points_that_have_an_equivalent(groups: list[int]) -> None:
    points = F.normalize(torch.randn(len(groups), 6, generator=draw(0)), dim=-1)
    found = float(contrastive_loss(points, torch.tensor(groups)))
    assert found == pytest.approx(naive_loss(points.double(), groups), rel=1e-4)


def planted(num_groups: int, copies: int, *, seed: int) -> Tensor:
    """[copies, num_groups, f]: what tells groups apart lies in a few quiet dimensions, under loud noise."""
    generator = draw(seed)
    signal = torch.zeros(1, num_groups, FEATURES)
    signal[..., :8] = torch.randn(1, num_groups, 8, generator=generator)
    noise = torch.randn(copies, num_groups, FEATURES, generator=generator)
    noise[..., :8] *= 0.1
    noise[..., 8:] *= 2
    return signal + noise


def trained(*, seed: int = 0, num_pass: int = 60) -> tuple[Metric, Tensor]:
    """A metric trained on two copies of every group, and a third copy that it never saw."""
    copies = planted(num_pass + 10, 3, seed=1)
    always = copies[:2, :10].reshape(-1, FEATURES)
    groups = torch.arange(10).repeat(2)
    views = (copies[0, 10:], copies[1, 10:])
    metric = train_metric(always, groups, views, width=16, generator=draw(seed))
    return metric, copies[2]


def separation(points: Tensor, others: Tensor) -> float:
    """Share of points whose nearest point among others is their own equivalent."""
    return float(((points @ others.T).argmax(-1) == torch.arange(len(points))).float().mean())


def test_planted_groups_are_told_apart_on_copies_never_seen() -> None:
    metric, unseen = trained(num_pass=300)
    seen = planted(310, 3, seed=1)[0]
    plain = separation(F.normalize(unseen, dim=-1), F.normalize(seen, dim=-1))
    learned = separation(metric.place(unseen), metric.place(seen))
    assert learned > 0.6 > 0.4 > plain


def test_points_lie_on_the_unit_sphere() -> None:
    metric, unseen = trained()
    torch.testing.assert_close(metric.place(unseen).norm(dim=-1), torch.ones(len(unseen)))
    assert not metric.projection.requires_grad


def test_the_same_seed_gives_the_same_metric() -> None:
    one, two, other = (trained(seed=seed)[0].projection for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("num_pass", [0, 1, 2])
def test_few_pass_samples_are_enough(num_pass: int) -> None:
    metric, unseen = trained(num_pass=num_pass)
    assert torch.isfinite(metric.place(unseen)).all()


def test_a_feature_that_never_moves_does_no_harm() -> None:
    always = torch.ones(4, FEATURES)
    same = torch.ones(3, FEATURES)
    metric = train_metric(always, torch.tensor([0, 0, 1, 1]), (same, same), width=4, generator=draw(0))
    assert torch.isfinite(metric.place(always + 1e-3)).all()
