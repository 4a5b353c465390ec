"""Draws the scopes of a job's edits: places the keys in the hosted model's metric and calibrates the radii.

A key's radius is a part of the way to its nearest pass samples, or to where no equivalent is taken to lie if
that is nearer. The part is the same for all keys, and so large that the share of pass samples inside any
scope of the version meets the budget, as counted on pass samples whose rewordings trained no metric.
Knows samples and points; does not know what an entry does when it fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salem.deltas.terms import LayerDelta
from salem.models.network import Network
from salem.records import EditBatch, Entry, EntryKey, Sample
from salem.scope.first_token import first_tokens, no_first_tokens
from salem.scope.lexical import WordCounts, pack_words
from salem.scope.lookups import BatchLookups, Lookups
from salem.scope.metric import Metric
from salem.scope.scope import Firing, Scope
from worker.activations.scope_features import FeatureMemo
from worker.recipes.base import EditTask
from worker.recipes.scoped.job_metric import job_metric
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.paraphrase_spread import exchange_of_job
from worker.recipes.scoped.warnings import INDISTINCT, meet, scope_warnings

CALIBRATION_SHARE = 0.3  # of the pass samples: kept from the metric, used to set radii
WIDEST, NARROWEST = 0.2, 0.995  # bounds of a radius, as a likeness
UNGUARDED = 0.9  # radius where there are no pass samples to tell
ROUNDING = 1e-5  # of a cosine: a radius set at a pass sample does not hold it
NEIGHBOURS = 5  # pass samples that say how crowded it is around a key
REACH = 0.95  # of the way to them, at most: what lies beyond, no pass sample speaks for
LEAST_EXCHANGE = 0.01  # of words, added to what is usual: where equivalents exchange none, one still can be


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


def draw_scopes(task: EditTask, options: ScopedOptions) -> Scoping:
    """Scopes for the edits of a job: one key per edit and per adapt sample.

    The parent's scopes have spent a part of the budget: the pass samples that they hold.
    """
    network, batch, keep = task.network, task.batch, task.batch.pass_samples
    calibrating = [_kept_from_metric(sample) for sample in keep]
    memo = FeatureMemo(network, task.artifacts.cache)
    found = job_metric(memo, task, options, calibrating)
    keys = found.metric.project(memo.read(batch.corrections, found.metric.feature_spec))
    points, ask = memo.points(keep, found.metric), BatchLookups(network, keep)
    apart = torch.tensor(calibrating, dtype=torch.bool, device=network.device)
    owners = torch.tensor(batch.owners, device=network.device)
    radii = widest_radii((points @ keys.T)[~apart])
    widest = _widest(network, batch, options, (found.metric, keys, radii, owners.float()))
    likeness = widest.likeness(points, ask)
    spent = _inside(task.parent, found.metric, points, ask) & apart
    budget = _budget_left(options, len(batch.edit_samples), float(spent.sum() / apart.sum().clamp(min=1)))
    radii = calibrated_radii(widest.radii, likeness[apart & ~spent], likeness, budget)
    scope = replace(widest, radii=radii)
    meeting = meet(scope, batch.corrections)
    return Scoping(
        scope=scope,
        is_new=found.is_new,
        corrections=Firing(owners, meeting.inside, torch.ones_like(radii)),
        kept=scope.fire_at(points, ask),
        calibration=apart,
        entries=_entries(scope, likeness, batch),
        warnings=scope_warnings(likeness, meeting, owners, batch),
    )


def _widest(
    network: Network,
    batch: EditBatch,
    options: ScopedOptions,
    placed: tuple[Metric, Tensor, Tensor, Tensor],
) -> Scope:
    """Scopes that mind as much of an input as they are to.

    Args:
        placed: metric, keys [k, m], radii [k] that reach most of the way to pass samples, and owners [k].
    """
    metric, keys, radii, owners = placed
    usual = exchange_of_job(metric, batch.paraphrases) + LEAST_EXCHANGE
    heard, worded = no_first_tokens(len(keys), keys.device), torch.zeros(len(keys), 0, dtype=torch.uint8)
    if options.first_token_weight:
        heard = first_tokens(network, batch.corrections)
    if options.lexical_weight:
        worded = pack_words(
            [WordCounts.of(sample).truncated(metric.word_weights) for sample in batch.corrections]
        )
    return Scope(
        metric=metric,
        keys=keys,
        radii=radii.clamp(min=min(1 - metric.extent, NARROWEST)),
        owners=owners,
        **vars(heard),
        first_token_weights=torch.full_like(radii, options.first_token_weight),
        words=worded.to(keys.device),
        lexical_weights=options.lexical_weight / usual * (1 - radii),
    )


def _budget_left(options: ScopedOptions, num_edits: int, spent: float) -> float:
    """The share of pass samples that may come to lie inside, of which the parent's scopes hold some."""
    budget = min(options.scope_budget, options.scope_budget_per_edit * num_edits)
    return min(budget, max(options.scope_budget - spent, 0.0))


def widest_radii(cosines: Tensor) -> Tensor:
    """Radii that reach most of the way to the nearest pass samples [p, k] -> [k]: to the mean of a few."""
    if not len(cosines):
        return cosines.new_full((cosines.shape[1],), UNGUARDED)
    nearest = cosines.topk(min(NEIGHBOURS, len(cosines)), dim=0).values.mean(0)
    return (1 - REACH * (1 - nearest)).clamp(WIDEST, NARROWEST)


def calibrated_radii(widest: Tensor, calibration: Tensor, likeness: Tensor, budget: float) -> Tensor:
    """Radii that spend the budget on the calibration part, as far as every edit still fires.

    A pass sample that is all but a key's own text narrows the scopes of its keys, to leave it outside, and
    no other: a twin says nothing about how crowded it is elsewhere. Of the budget it takes its part, for
    among what nobody has seen there are twins, too.

    Args:
        widest: [k] radii beyond which none may reach.
        calibration: [q, k] likeness to each key of the pass samples whose share inside any scope is measured.
        likeness: [p, k] of all pass samples, for the twins among them.
        budget: that share.

    Returns:
        [k]; the same part of the way to the widest radius for every key.
    """
    distance = 1 - widest
    telling = calibration[calibration.amax(-1) <= INDISTINCT]
    if len(telling):
        parts = ((1 - telling) / distance).amin(-1).sort().values  # of the way, at which each is reached
        num_twins = len(calibration) - len(telling)
        place = max(int(budget * len(calibration)) - num_twins, 0)
        distance = distance * parts[min(place, len(parts) - 1)].clamp(max=1.0)
    radii = 1 - distance
    if len(likeness):
        twins = likeness.amax(0)
        radii = torch.where(twins > INDISTINCT, torch.maximum(radii, twins), radii)
    return (radii + ROUNDING).clamp(WIDEST, NARROWEST)


def _kept_from_metric(sample: Sample) -> bool:
    """Decided by content, so that no job calibrates on what an earlier one trained the metric on."""
    return int(sample.content_hash[8:16], 16) / 2**32 < CALIBRATION_SHARE


def _inside(parent: Sequence[LayerDelta], metric: Metric, points: Tensor, ask: Lookups) -> Tensor:
    """Which points the parent's scopes hold already -> [q] bool; those of an older metric do not count."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for delta in parent:
        if delta.scoped and delta.scoped.scope.metric.sha256 == metric.sha256 and len(points):
            inside |= delta.scoped.scope.fire_at(points, ask).margin > 0
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
