"""Draws the state scopes of a job: projects the keys with the hosted model's metric and calibrates the radii.

A scope reaches some fraction of the way from its key to the nearest pass samples, but no farther than
paraphrases are expected to lie. The fraction is the same for all keys: the largest that keeps the share of
pass samples inside any scope of the version within the budget. That share is measured on pass samples that
trained no metric. Must not know what an entry does when it fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from salem.deltas.terms import LayerDelta
from salem.models.network import Network
from salem.records import EditBatch, Sample
from salem.scope.firing import Firing
from salem.scope.first_token import first_tokens, no_first_tokens
from salem.scope.lexical import WordCounts, pack_words
from salem.scope.lookups import BatchLookups, KnownLookups, Lookups
from salem.scope.metric import Metric
from salem.scope.state_scope import StateScope
from worker.activations.scope_features import FeatureMemo
from worker.recipes.base import EditTask
from worker.recipes.scoped.job_metric import job_metric
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.paraphrase_spread import exchange_of_job
from worker.recipes.scoped.scoping import Scoping, entries
from worker.recipes.scoped.warnings import find_overlaps, scope_warnings

INDISTINCT = 0.97  # score above which a pass sample is a near-duplicate of a key
CALIBRATION_SHARE = 0.3  # of the pass samples; they set radii and never train a metric
WIDEST, NARROWEST = 0.2, 0.995  # bounds of a radius, as a score
UNGUARDED = 0.9  # radius if there are no pass samples
ROUNDING = 1e-5  # of a cosine: a pass sample at exactly the radius stays outside
NEAREST = 5  # number of pass samples that measure the density around a key
REACH = 0.95  # largest fraction of the distance to them
LEAST_EXCHANGE = 0.01  # added to the usual weight of exchanged words, which may be zero


def draw_state_scopes(task: EditTask, options: ScopedOptions) -> Scoping:
    """Scopes for the edits of a job: one key per edit and per adapt sample.

    The parent's scopes already use a part of the budget: the pass samples inside them.
    """
    network, batch, keep = task.network, task.batch, task.batch.pass_samples
    calibrating = [_kept_from_metric(sample) for sample in keep]
    memo = FeatureMemo(network, task.artifacts.cache)
    found = job_metric(memo, task, options, calibrating)
    keys = found.metric.project(memo.read(batch.corrections, found.metric.feature_spec))
    points, ask = memo.points(keep, found.metric), BatchLookups(network, keep)
    calibration = torch.tensor(calibrating, dtype=torch.bool, device=network.device)
    owners = torch.tensor(batch.owners, device=network.device)
    radii = widest_radii((points @ keys.T)[~calibration])
    widest = _widest(network, batch, options, (found.metric, keys, radii, owners.float()))
    likeness = widest.likeness(points, ask)
    spent = _inside(task.parent, found.metric, points, ask) & calibration
    budget = _budget_left(
        options, len(batch.edit_samples), float(spent.sum() / calibration.sum().clamp(min=1))
    )
    radii = calibrated_radii(widest.radii, likeness[calibration & ~spent], likeness, budget)
    scope = replace(widest, radii=radii)
    overlaps = find_overlaps(owners, partial(_margins, scope, batch))
    return Scoping(
        scope=scope,
        is_new=found.is_new,
        corrections=Firing(owners, overlaps.margin, torch.ones_like(radii)),
        kept=scope.fire_at(points, ask),
        calibration=calibration,
        entries=entries(owners, radii, likeness, batch),
        warnings=scope_warnings(likeness > INDISTINCT, likeness, overlaps, batch, network.turns),
    )


def _widest(
    network: Network,
    batch: EditBatch,
    options: ScopedOptions,
    placed: tuple[Metric, Tensor, Tensor, Tensor],
) -> StateScope:
    """Scopes with the widest radii, and with the lookups that the options turn on.

    Args:
        placed: metric, keys [k, m], radii [k] that reach 95% of the distance to pass samples, owners [k].
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
    return StateScope(
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
    """The share of pass samples that may still lie inside a scope, after what the parent's scopes use."""
    budget = min(options.scope_budget, options.scope_budget_per_edit * num_edits)
    return min(budget, max(options.scope_budget - spent, 0.0))


def widest_radii(cosines: Tensor) -> Tensor:
    """Radii [k] that reach 95% of the distance to a few nearest pass samples, from cosines [p, k]."""
    if not len(cosines):
        return cosines.new_full((cosines.shape[1],), UNGUARDED)
    nearest = cosines.topk(min(NEAREST, len(cosines)), dim=0).values.mean(0)
    return (1 - REACH * (1 - nearest)).clamp(WIDEST, NARROWEST)


def calibrated_radii(widest: Tensor, calibration: Tensor, likeness: Tensor, budget: float) -> Tensor:
    """Radii that use up the budget on the calibration samples, but still let every edit fire.

    A pass sample that is a near-duplicate of a key narrows only that key's scope: it says nothing about the
    density elsewhere. It still counts toward the budget, because unseen inputs have near-duplicates, too.

    Args:
        widest: [k] the widest radii.
        calibration: [q, k] scores of the calibration samples at each key.
        likeness: [p, k] scores of all pass samples, to find near-duplicates.
        budget: the share of them that may lie inside any scope.

    Returns:
        [k]; every key goes the same fraction of the way to its widest radius.
    """
    distance = 1 - widest
    distinct = calibration[calibration.amax(-1) <= INDISTINCT]
    if len(distinct):
        parts = ((1 - distinct) / distance).amin(-1).sort().values  # fraction at which a scope reaches each
        num_duplicates = len(calibration) - len(distinct)
        place = max(int(budget * len(calibration)) - num_duplicates, 0)
        distance = distance * parts[min(place, len(parts) - 1)].clamp(max=1.0)
    radii = 1 - distance
    if len(likeness):
        nearest = likeness.amax(0)
        radii = torch.where(nearest > INDISTINCT, torch.maximum(radii, nearest), radii)
    return (radii + ROUNDING).clamp(WIDEST, NARROWEST)


def _kept_from_metric(sample: Sample) -> bool:
    """Whether a sample calibrates. Its content decides, so no job calibrates on what trained a metric."""
    return int(sample.content_hash[8:16], 16) / 2**32 < CALIBRATION_SHARE


def _inside(parent: Sequence[LayerDelta], metric: Metric, points: Tensor, ask: Lookups) -> Tensor:
    """Which points [q, m] lie in the parent's scopes -> [q] bool. Scopes of an older metric do not count."""
    scopes = [delta.scoped.scope for delta in parent if delta.scoped]
    own = [scope for scope in scopes if isinstance(scope, StateScope) and scope.reader == metric.sha256]
    if not own or not len(points):
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    return StateScope.joined(own).fire_at(points, ask).margin > 0


def _margins(scope: StateScope, batch: EditBatch, rows: Tensor) -> Tensor:
    """How far inside each scope the corrections at these rows [r] lie -> [r, k]."""
    words = [WordCounts.of(batch.corrections[row]) for row in rows.tolist()]
    known = KnownLookups(words, scope.first_tokens.rows(rows))
    return scope.likeness(scope.keys[rows], known) - scope.radii
