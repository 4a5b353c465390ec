"""Draws the scopes of a job's edits: trains the metric, sets the keys, calibrates the radii.

The radius of a key lies between the nearest pass sample and the edit's own equivalents; then all radii rise together
until the share of pass samples inside any scope, on a part that the metric was not trained on, meets the budget.
Knows samples and features; does not know what an entry does when it fires.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.hosting import Network
from salem.records import EditBatch, Hyperparameters, Layer, Sample
from salem.scopes import Scope, features
from worker.metric import Metric, train_metric
from worker.rewording import reword_all

CALIBRATION_SHARE = 0.3  # of the pass samples: kept from the metric, used to set radii
WIDEST, NARROWEST = 0.3, 0.9  # bounds of a radius, as a cosine
REWORDINGS = 2  # of each edit and paraphrase


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
    keys, points = metric.place(own_features), metric.place(kept)
    equivalents = metric.place(reworded_features).reshape(REWORDINGS, len(keys), -1)
    radii, warnings = _radii(keys, owners, equivalents, points, batch, hyper)
    return _within_budget(metric, keys, radii, owners, points, num_calibration, hyper, warnings)


def _radii(
    keys: Tensor,
    owners: Tensor,
    equivalents: Tensor,
    points: Tensor,
    batch: EditBatch,
    hyper: Hyperparameters,
) -> tuple[Tensor, tuple[str, ...]]:
    """A radius per key, and a warning per edit that cannot be told from a pass sample."""
    nearest, which = (keys @ points.T).max(-1)  # [k]
    to_equivalents = (keys * equivalents).sum(-1).mean(0)  # [k] mean cosine to the own rewordings
    radii = (nearest + hyper.scope_mix * (to_equivalents - nearest)).clamp(WIDEST, NARROWEST)
    close = {
        int(owner): int(place)
        for owner, place, cosine in zip(owners, which, nearest, strict=True)
        if cosine > NARROWEST
    }
    return radii, tuple(_too_close(batch.edit_samples[i], batch.pass_samples[j]) for i, j in close.items())


def _too_close(edit: Sample, kept: Sample) -> str:
    return f'the scope of "{edit.input[:80]}" cannot be told from the pass sample "{kept.input[:80]}"'


def _within_budget(
    metric: Metric,
    keys: Tensor,
    radii: Tensor,
    owners: Tensor,
    points: Tensor,
    num_calibration: int,
    hyper: Hyperparameters,
    warnings: Sequence[str],
) -> Scoping:
    """Raise all radii together until the calibration part meets the budget, as far as edits still fire."""
    calibration = (points[:num_calibration] @ keys.T - radii).amax(-1)  # [c]
    if num_calibration:
        allowed = int(hyper.scope_budget * num_calibration)
        excess = float(calibration.sort(descending=True).values[min(allowed, num_calibration - 1)])
        radii = (radii + max(0.0, excess)).clamp(max=NARROWEST)
    inside = (points @ keys.T - radii).amax(-1)
    scope = Scope(metric.centre, metric.spread, metric.projection, keys, radii, owners.float())
    share = float((inside[:num_calibration] > 0).float().mean()) if num_calibration else 0.0
    return Scoping(scope, inside, share, tuple(warnings))
