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
from salem.scopes import Scope, features
from worker.metric import Metric, train_metric
from worker.rewording import reword_all

CALIBRATION_SHARE = 0.3  # of the pass samples: kept from the metric, used to set radii
WIDEST, NARROWEST = 0.3, 0.9  # bounds of a radius, as a cosine
REWORDINGS = 2  # of each edit and paraphrase
NEIGHBOURS = 5  # pass samples that say how crowded it is around a key


@dataclass(frozen=True)
class Scoping:
    """The scopes of a job and how near its pass samples come to them."""

    scope: Scope
    inside: Tensor  # [p] of each pass sample: cosine to the nearest key minus its radius
    share_inside: float  # of the calibration part
    warnings: tuple[str, ...]


def draw_scopes(
    network: Network, batch: EditBatch, layer: Layer, hyper: Hyperparameters, generator: torch.Generator
) -> Scoping:
    """Scopes for the edits of a batch at a layer: one key per edit and per adapt sample."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    own = [*batch.edit_samples, *(sample for _, sample in batch.adapt_samples)]
    owners = torch.tensor([*range(len(batch.edit_samples)), *(index for index, _ in batch.adapt_samples)])
    owners = owners.to(network.device)
    reworded = [sample for _ in range(REWORDINGS) for sample in reword_all(own, rng)]
    keep = list(batch.pass_samples)
    own_features = features(network, own, layer)
    reworded_features = features(network, reworded, layer)
    kept = features(network, keep, layer)
    kept_again = features(network, reword_all(keep, rng), layer)
    num_calibration = int(len(keep) * CALIBRATION_SHARE)
    metric = train_metric(
        torch.cat([own_features, reworded_features]),
        torch.cat([owners] * (1 + REWORDINGS)),
        (kept[num_calibration:], kept_again[num_calibration:]),
        width=hyper.metric_width,
        generator=generator,
    )
    return _calibrated(
        metric, metric.place(own_features), owners, metric.place(kept), num_calibration, batch, hyper
    )


def _calibrated(
    metric: Metric,
    keys: Tensor,
    owners: Tensor,
    points: Tensor,
    num_calibration: int,
    batch: EditBatch,
    hyper: Hyperparameters,
) -> Scoping:
    """Radii that spend the budget on the calibration part, as far as every edit still fires."""
    likeness = points @ keys.T  # [p, k]
    if len(points) > num_calibration:
        crowding = (
            likeness[num_calibration:].topk(min(NEIGHBOURS, len(points) - num_calibration), dim=0).values
        )
        radii = crowding.mean(0)  # a key among many pass samples gets a narrow scope
    else:
        radii = torch.full((len(keys),), NARROWEST, device=keys.device)
    if num_calibration:
        beyond = (likeness[:num_calibration] - radii).amax(-1).sort(descending=True).values
        radii = radii + beyond[min(int(hyper.scope_budget * num_calibration), num_calibration - 1)]
    radii = radii.clamp(WIDEST, NARROWEST)
    inside = (likeness - radii).amax(-1)
    scope = Scope(metric.centre, metric.spread, metric.projection, keys, radii, owners.float())
    share = float((inside[:num_calibration] > 0).float().mean()) if num_calibration else 0.0
    return Scoping(scope, inside, share, _warnings(likeness, owners, batch))


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
