"""The scope metric: its loss against a naive loop, and groups that it must separate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from salem.scope.features import FeatureSpec
from salem.scope.metric import Metric
from worker.recipes.scoped import metric_training as metrics
from worker.recipes.scoped.metric_training import (
    MOST_ALWAYS,
    SHARP,
    TOLERATED,
    Equivalents,
    contrastive_loss,
    coverage,
    new_metric,
    train_metric,
)

FEATURES = 24
READING = FeatureSpec(stack="layers", block=1, paired=False, rarity=torch.ones(4))
STEPS = 100


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_loss(points: Tensor, groups: list[int]) -> float:
    terms = []
    for i, own in enumerate(groups):
        others = [j for j in range(len(groups)) if j != i]
        total = sum(math.exp(float(points[i] @ points[j]) / SHARP) for j in others)
        shares = [float(points[i] @ points[j]) / SHARP - math.log(total) for j in others if groups[j] == own]
        if shares:
            terms.append(-sum(shares) / len(shares))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("groups", [[0, 0, 1, 1], [0, 0, 0, 1, 2, 1], [5, 5, 7]])
def test_the_loss_is_the_mean_over_points_that_have_an_equivalent(groups: list[int]) -> None:
    points = F.normalize(torch.randn(len(groups), 6, generator=draw(0)), dim=-1)
    found = float(contrastive_loss(points, torch.tensor(groups), SHARP))
    assert found == pytest.approx(naive_loss(points.double(), groups), rel=1e-4)


def planted(num_groups: int, copies: int, *, seed: int) -> Tensor:
    """[copies, num_groups, f]: a few dimensions of small variance separate the groups; the rest is noise."""
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
    return fresh(Equivalents(always, groups, copies[0, 10:], copies[1, 10:]), seed=seed), copies[2]


def fresh(equivalents: Equivalents, *, width: int = 16, seed: int = 0, steps: int = STEPS) -> Metric:
    generator = draw(seed)
    start = new_metric(READING, equivalents, width=width, generator=generator)
    return train_metric(start, equivalents, steps=steps, generator=generator)


def separation(points: Tensor, others: Tensor) -> float:
    """Share of points whose nearest point among others is their own equivalent."""
    return float(((points @ others.T).argmax(-1) == torch.arange(len(points))).float().mean())


def test_planted_groups_are_separated_on_unseen_copies() -> None:
    metric, unseen = trained(num_pass=300)
    seen = planted(310, 3, seed=1)[0]
    plain = separation(F.normalize(unseen, dim=-1), F.normalize(seen, dim=-1))
    learned = separation(metric.project(unseen), metric.project(seen))
    assert learned > 0.6 > 0.4 > plain


def test_points_lie_on_the_unit_sphere() -> None:
    metric, unseen = trained()
    torch.testing.assert_close(metric.project(unseen).norm(dim=-1), torch.ones(len(unseen)))
    assert not metric.projection.requires_grad


def test_the_same_seed_gives_the_same_metric() -> None:
    one, two, other = (trained(seed=seed)[0].projection for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("num_pass", [0, 1, 2])
def test_few_pass_samples_are_enough(num_pass: int) -> None:
    metric, unseen = trained(num_pass=num_pass)
    assert torch.isfinite(metric.project(unseen)).all()


def test_a_constant_feature_does_no_harm() -> None:
    always = torch.ones(4, FEATURES)
    same = torch.ones(3, FEATURES)
    metric = fresh(Equivalents(always, torch.tensor([0, 0, 1, 1]), same, same), width=4)
    assert torch.isfinite(metric.project(always + 1e-3)).all()


def test_refining_starts_from_the_stored_projection() -> None:
    copies = planted(60, 2, seed=1)
    empty = copies[0, :0]
    known = Equivalents(empty, torch.zeros(0, dtype=torch.int64), copies[0], copies[1])
    metric = fresh(known)
    before = metric.projection.clone()
    assert torch.equal(train_metric(metric, known, steps=0, generator=draw(0)).projection, before)
    refined = train_metric(metric, known, steps=1, generator=draw(0))
    moved = float((refined.projection - before).abs().max())
    assert 0 < moved < 0.02, "one step of the optimizer, not a new start"
    assert torch.equal(metric.projection, before)
    assert torch.equal(refined.center, metric.center) and torch.equal(refined.spread, metric.spread)


def test_a_refined_metric_does_not_keep_the_name_of_its_old_file() -> None:
    metric, _ = trained(num_pass=3)
    one = planted(4, 1, seed=2)[0]
    more = Equivalents(one, torch.tensor([0, 0, 1, 1]), one[:0], one[:0])
    assert train_metric(replace(metric, sha256="a" * 64), more, steps=1, generator=draw(0)).sha256 == ""


@pytest.mark.parametrize("num_others", [1, 5, 400])
def test_coverage_is_the_share_of_pairs_closer_than_all_but_a_few_others(num_others: int) -> None:
    first, noise, others = (
        F.normalize(torch.randn(count, 5, generator=draw(seed)), dim=-1)
        for seed, count in enumerate((40, 40, num_others))
    )
    second = F.normalize(first + 0.6 * noise, dim=-1)
    tolerated = max(1, int(TOLERATED * num_others))
    closer = [
        sum(float(one @ other) >= float(one @ twin) for other in others)
        for one, twin in zip(first, second, strict=True)
    ]
    expected = sum(count < tolerated for count in closer) / len(closer)
    assert coverage(first, second, others) == pytest.approx(expected)
    assert expected > 0 and (expected < 1) is (num_others > 1)


def test_without_pairs_or_others_nothing_is_uncovered() -> None:
    some = torch.ones(2, 3)
    assert coverage(some[:0], some[:0], some) == coverage(some, some, some[:0]) == 1.0


def test_with_more_texts_than_a_step_takes_whole_groups_are_drawn() -> None:
    generator, seen = draw(3), torch.zeros(900, dtype=torch.bool)
    groups = torch.arange(2_700) % 900
    for _ in range(12):
        rows = metrics._drawn(groups, generator)
        assert MOST_ALWAYS - 3 <= len(rows) <= MOST_ALWAYS
        assert (torch.bincount(groups[rows], minlength=900) % 3 == 0).all()
        seen[groups[rows]] = True
    assert seen.float().mean() > 0.95
    assert torch.equal(metrics._drawn(groups[:1_000], generator), torch.arange(1_000))
    assert len(metrics._drawn(torch.zeros(2_000, dtype=torch.int64), generator)) == 2_000, "one at least"


def test_a_step_that_draws_groups_still_learns() -> None:
    texts = torch.randn(400, FEATURES, generator=draw(0))
    noise = torch.randn(1_200, FEATURES, generator=draw(1))
    always = texts.repeat(3, 1) + torch.cat([noise[:, :8] * 3, noise[:, 8:] * 0.1], dim=1)
    groups = torch.arange(400).repeat(3)
    nothing = torch.zeros(0, FEATURES)
    equivalents = Equivalents(always, groups, nothing, nothing)
    start = new_metric(READING, equivalents, width=8, generator=draw(2))
    trained = train_metric(start, equivalents, steps=STEPS, generator=draw(2))

    def covered(metric: Metric) -> float:
        points = metric.project(always)
        return coverage(points[:400], points[400:800], points[800:])

    assert covered(trained) > covered(start) + 0.2
