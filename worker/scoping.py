"""Draws the scopes of a job's edits: places the keys in the hosted model's metric and calibrates the radii.

A key's radius is a part of the way to its nearest pass samples. The part is the same for all keys, and so
large that the share of pass samples inside any scope of the version meets the budget, as counted on pass
samples that no metric was trained on.
Knows samples and points; does not know what an entry does when it fires.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salem.deltas import LayerDelta
from salem.hosting import Network
from salem.openings import Openings, openings, unheard
from salem.records import EditBatch, Entry, EntryKey, Hyperparameters, Layer, Sample
from salem.scopes import Firing, Metric, Scope
from worker.feature_memo import FeatureMemo
from worker.metric_training import job_metric
from worker.sample_cache import SampleCache

CALIBRATION_SHARE = 0.3  # of the pass samples: kept from the metric, used to set radii
WIDEST, NARROWEST = 0.2, 0.995  # bounds of a radius, as a likeness
UNGUARDED = 0.9  # radius where there are no pass samples to tell
INDISTINCT = 0.97  # likeness from which on a pass sample and a key can hardly be told apart
ROUNDING = 1e-5  # of a cosine: a radius set at a pass sample does not hold it
NEIGHBOURS = 5  # pass samples that say how crowded it is around a key


@dataclass(frozen=True)
class Scoping:
    """The scopes of a job, and what fires on its samples."""

    scope: Scope
    is_new: bool  # whether this job trained the metric
    corrections: Firing  # on edit and adapt samples, in this order
    kept: Firing  # on pass samples
    calibration: Tensor  # [p] bool: pass samples that were kept from the metric
    entries: tuple[Entry, ...]  # what the scopes are, in words
    warnings: tuple[str, ...]


def draw_scopes(
    network: Network,
    parent: Sequence[LayerDelta],
    batch: EditBatch,
    layer: Layer,
    hyper: Hyperparameters,
    generator: torch.Generator,
    stored: Metric | None,
    cache: SampleCache | None = None,
) -> Scoping:
    """Scopes for the edits of a batch: one key per edit and per adapt sample.

    Args:
        parent: deltas of the version that is edited; what their scopes hold has been spent of the budget.
        stored: the hosted model's metric, if there is one.
        cache: of the base, for the points of pass samples.
    """
    keep = batch.pass_samples
    apart = torch.tensor([_kept_from_metric(sample) for sample in keep], dtype=torch.bool)
    learning = [sample for sample, calibrates in zip(keep, apart.tolist(), strict=True) if not calibrates]
    memo = FeatureMemo(network, cache)
    found = job_metric(memo, batch, learning, layer, hyper, generator, stored)
    metric = found.metric
    keys = metric.place(memo.read(batch.corrections, metric.reading))
    points = memo.points(keep, metric)
    apart = apart.to(network.device)
    owners = torch.tensor([*range(len(batch.edit_samples)), *(edit for edit, _ in batch.adapt_samples)])
    owners = owners.to(network.device)
    own, said = _heard(memo, batch.corrections, keep, parent, hyper)
    inside_before = _inside(parent, metric, points[apart], said.rows(apart))
    budget = min(hyper.scope_budget, hyper.scope_budget_per_edit * len(batch.edit_samples))
    left = (
        min(budget, max(hyper.scope_budget - float(inside_before.float().mean()), 0.0)) if len(points) else 0
    )
    scope = Scope(
        metric,
        keys,
        radii=torch.zeros(len(keys), device=network.device),
        owners=owners.float(),
        **vars(own),
        doubts=torch.full((len(keys),), hyper.disagreement_weight, device=network.device),
    )
    likeness = scope.likeness(points, said)
    radii = calibrated_radii(likeness[~apart], likeness[apart][~inside_before], left)
    scope = replace(scope, radii=radii)
    return Scoping(
        scope=scope,
        is_new=found.is_new,
        corrections=Firing(owners, scope.fire_at(keys, own.rows).inside, torch.ones_like(radii)),
        kept=scope.fire_at(points, said.rows),
        calibration=apart,
        entries=_entries(scope, likeness, batch),
        warnings=(*_indistinct(likeness, owners, batch), *_conflicts(scope, batch)),
    )


def _heard(
    memo: FeatureMemo,
    corrections: Sequence[Sample],
    keep: Sequence[Sample],
    parent: Sequence[LayerDelta],
    hyper: Hyperparameters,
) -> tuple[Openings, Openings]:
    """How the base begins its answers to corrections and to pass samples; of no tokens where nobody asks."""
    device = memo.network.device
    asks = bool(hyper.disagreement_weight)
    own = openings(memo.network, corrections) if asks else unheard(len(corrections), device)
    asked_before = any(delta.scoped.doubts.any() for delta in parent if delta.scoped)
    return own, memo.openings(keep) if asks or asked_before else unheard(len(keep), device)


def calibrated_radii(others: Tensor, calibration: Tensor, budget: float) -> Tensor:
    """Radii that spend the budget on the calibration part, as far as every edit still fires.

    None reaches beyond the nearest pass samples, however much budget is left.

    A pass sample that is all but a key's own text narrows the scopes of its keys, to leave it outside, and
    no other: a twin says nothing about how crowded it is elsewhere.

    Args:
        others: [p, k] likeness of pass samples to each key: they say how crowded it is there.
        calibration: [q, k] the same for those whose share inside any scope is measured.
        budget: that share.

    Returns:
        [k]; a key among many pass samples gets a narrower scope.
    """
    if not len(others):
        return calibration.new_full((calibration.shape[1],), UNGUARDED)
    distance = 1 - others.topk(min(NEIGHBOURS, len(others)), dim=0).values.mean(0)
    distance = distance.clamp(min=1 - NARROWEST)
    telling = calibration[calibration.amax(-1) <= INDISTINCT]
    if len(telling):
        parts = ((1 - telling) / distance).amin(-1).sort().values  # of the way, at which each is reached
        distance = distance * parts[min(int(budget * len(calibration)), len(parts) - 1)].clamp(max=1.0)
    twins = torch.cat([others, calibration]).amax(0)
    radii = torch.where(twins > INDISTINCT, torch.maximum(1 - distance, twins), 1 - distance)
    return (radii + ROUNDING).clamp(WIDEST, NARROWEST)


def _kept_from_metric(sample: Sample) -> bool:
    """Decided by content, so that no job calibrates on what an earlier one trained the metric on."""
    return int(sample.content_hash[8:16], 16) / 2**32 < CALIBRATION_SHARE


def _inside(parent: Sequence[LayerDelta], metric: Metric, points: Tensor, said: Openings) -> Tensor:
    """Which points the parent's scopes hold already -> [q] bool; those of an older metric do not count."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for delta in parent:
        if delta.scoped and delta.scoped.metric.sha256 == metric.sha256 and len(points):
            inside |= delta.scoped.scope.fire_at(points, said.rows).inside > 0
    return inside


def _entries(scope: Scope, likeness: Tensor, batch: EditBatch) -> tuple[Entry, ...]:
    """One entry per edit, in words: its keys, their radii, and the pass sample most like each."""
    keys: list[list[EntryKey]] = [[] for _ in batch.edit_samples]
    nearest = likeness.max(0) if len(likeness) else None
    for place, sample in enumerate(batch.corrections):
        keys[int(scope.owners[place])].append(
            EntryKey(
                text=sample.input,
                radius=round(float(scope.radii[place]), 4),
                nearest_pass_sample=batch.pass_samples[int(nearest.indices[place])].input
                if nearest
                else None,
                nearest_likeness=round(float(nearest.values[place]), 4) if nearest else None,
            )
        )
    return tuple(
        Entry(
            input=sample.input,
            text_pair=sample.text_pair,
            target=sample.target,
            forget=sample.forget,
            keys=tuple(own),
        )
        for sample, own in zip(batch.edit_samples, keys, strict=True)
    )


def _indistinct(likeness: Tensor, owners: Tensor, batch: EditBatch) -> Iterator[str]:
    """One warning per edit that the metric cannot tell from a pass sample."""
    if not len(likeness):
        return
    nearest, which = likeness.max(0)  # [k]
    close = {
        int(owner): int(place)
        for owner, place, closest in zip(owners, which, nearest, strict=True)
        if closest > INDISTINCT
    }
    for edit, kept in close.items():
        yield (
            f'the scope of "{batch.edit_samples[edit].input[:80]}" cannot be told from the pass sample '
            f'"{batch.pass_samples[kept].input[:80]}"'
        )


def _conflicts(scope: Scope, batch: EditBatch) -> Iterator[str]:
    """One warning per pair of edits of which one lies in the other's scope and wants another answer."""
    holds = scope.likeness(scope.keys, scope.openings) > scope.radii  # [k, k]: of the column, that of the row
    pairs = {
        tuple(sorted((int(scope.owners[row]), int(scope.owners[column]))))
        for row, column in holds.nonzero().tolist()
    }
    for one, other in sorted(pairs):
        first, second = batch.edit_samples[one], batch.edit_samples[other]
        if first.becomes != second.becomes:
            yield (
                f'"{first.input[:80]}" and "{second.input[:80]}" lie in one scope but have different '
                "targets; the nearer one answers"
            )
