"""Draws the scopes of a job's edits: trains the metric, sets the keys, calibrates the radii.

A key's radius starts where its nearest pass samples lie; then all radii move together until the share of pass
samples inside any scope, on a part that the metric was not trained on, meets the budget.
Knows samples and features; does not know what an entry does when it fires.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.hosting import Network
from salem.records import EditBatch, Hyperparameters, Layer
from salem.scopes import Firing, Scope, features
from worker.metric import train_metric
from worker.rewording import reword_all

CALIBRATION_SHARE = 0.3  # of the pass samples: kept from the metric, used to set radii
WIDEST, NARROWEST = 0.3, 0.9  # bounds of a radius, as a cosine
REWORDINGS = 2  # of each edit and paraphrase
NEIGHBOURS = 5  # pass samples that say how crowded it is around a key


@dataclass(frozen=True)
class Scoping:
    """The scopes of a job, and what fires on its samples."""

    scope: Scope
    corrections: Firing  # on edit and adapt samples, in this order
    kept: Firing  # on pass samples; the first `num_calibration` were kept from the metric
    num_calibration: int
    state_scale: float  # root mean square of the states that the layer writes to: the unit of values
    warnings: tuple[str, ...]


def draw_scopes(
    network: Network, batch: EditBatch, layer: Layer, hyper: Hyperparameters, generator: torch.Generator
) -> Scoping:
    """Scopes for the edits of a batch at a layer: one key per edit and per adapt sample."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    own = [*batch.edit_samples, *(sample for _, sample in batch.adapt_samples)]
    owners = torch.tensor([*range(len(batch.edit_samples)), *(index for index, _ in batch.adapt_samples)])
    owners = owners.to(network.device)
    keep = list(batch.pass_samples)
    num_calibration = int(len(keep) * CALIBRATION_SHARE)
    reworded = [sample for _ in range(REWORDINGS) for sample in reword_all(own, rng)]
    own_features = features(network, own, layer)
    kept = features(network, keep, layer) if keep else own_features[:0]
    kept_again = features(network, reword_all(keep[num_calibration:], rng), layer) if keep else kept
    metric = train_metric(
        torch.cat([own_features, features(network, reworded, layer)]),
        torch.cat([owners] * (1 + REWORDINGS)),
        (kept[num_calibration:], kept_again),
        width=hyper.metric_width,
        generator=generator,
    )
    keys, points = metric.place(own_features), metric.place(kept)
    budget = min(hyper.scope_budget, hyper.scope_budget_per_edit * len(batch.edit_samples))
    radii = calibrated_radii(points @ keys.T, num_calibration, budget)
    scope = Scope(metric.centre, metric.spread, metric.projection, keys, radii, owners.float())
    return Scoping(
        scope=scope,
        corrections=scope.fire_at(keys),
        kept=scope.fire_at(points),
        num_calibration=num_calibration,
        state_scale=float(own_features.chunk(5, dim=-1)[-1].square().mean().sqrt()),
        warnings=_warnings(points @ keys.T, owners, batch),
    )


def calibrated_radii(likeness: Tensor, num_calibration: int, budget: float) -> Tensor:
    """Radii that spend the budget on the calibration part, as far as every edit still fires.

    Args:
        likeness: [p, k] cosine of each pass sample to each key; the calibration part comes first.
        num_calibration: how many of the p.
        budget: share of the calibration part that may lie inside any scope.

    Returns:
        [k]; a key among many pass samples gets a narrower scope.
    """
    calibration, rest = likeness[:num_calibration], likeness[num_calibration:]
    if not len(rest):
        return likeness.new_full((likeness.shape[1],), NARROWEST)
    radii = rest.topk(min(NEIGHBOURS, len(rest)), dim=0).values.mean(0)
    if len(calibration):
        beyond = (calibration - radii).amax(-1).sort(descending=True).values
        radii = radii + beyond[min(int(budget * len(calibration)), len(calibration) - 1)]
    return radii.clamp(WIDEST, NARROWEST)


def _warnings(likeness: Tensor, owners: Tensor, batch: EditBatch) -> tuple[str, ...]:
    """One warning per edit that the metric cannot tell from a pass sample."""
    if not len(likeness):
        return ()
    nearest, which = likeness.max(0)  # [k]
    close = {
        int(owner): int(place)
        for owner, place, cosine in zip(owners, which, nearest, strict=True)
        if cosine > NARROWEST
    }
    return tuple(
        f'the scope of "{batch.edit_samples[edit].input[:80]}" cannot be told from the pass sample '
        f'"{batch.pass_samples[kept].input[:80]}"'
        for edit, kept in close.items()
    )
