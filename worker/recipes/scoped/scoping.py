"""The scopes of a job, of either kind, and how they fire on its samples. Must not know how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from salem.records import EditBatch, Entry, EntryKey
from salem.scope.firing import Firing
from salem.scope.scope import Scope


@dataclass(frozen=True)
class Scoping:
    """The scopes of a job, and how they fire on its samples."""

    scope: Scope
    is_new: bool  # whether this job trained the metric
    corrections: Firing  # on edit and adapt samples, in this order
    kept: Firing  # on pass samples
    calibration: Tensor  # [p] bool: pass samples that calibrate and never train a metric
    entries: tuple[Entry, ...]  # the scopes as records
    warnings: tuple[str, ...]


def entries(owners: Tensor, radii: Tensor, likeness: Tensor, batch: EditBatch) -> tuple[Entry, ...]:
    """One record per edit: its keys, their radii, and the nearest pass sample of each.

    Args:
        owners: [k] the edit of each key; the keys are the corrections of the batch.
        radii: [k] the likeness above which a key's scope is open.
        likeness: [p, k] of pass samples to keys.
    """
    keys: list[list[EntryKey]] = [[] for _ in batch.edit_samples]
    nearest = likeness.max(0) if len(likeness) else None
    for place, sample in enumerate(batch.corrections):
        keys[int(owners[place])].append(
            EntryKey(
                text=sample.input,
                radius=round(float(radii[place]), 4),
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
