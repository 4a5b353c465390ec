"""Warnings about a job's scopes: edits close to pass samples, and edits in each other's scopes.

Must not know how scopes are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.messages import first_few, quote
from salem.records import EditBatch, Sample, TextInput
from salem.scope.lexical import WordCounts
from salem.scope.lookups import KnownLookups
from salem.scope.scope import Scope

INDISTINCT = 0.97  # score above which a pass sample is a near-duplicate of a key
_ROWS = 1_024  # keys compared with all keys at a time


@dataclass(frozen=True)
class Overlaps:
    """How the corrections of a job lie in each other's scopes. Each correction is a key."""

    margin: Tensor  # [k] how far inside its deepest scope each lies
    deepest: Tensor  # [k] int64: the edit of that scope
    shared: Tensor  # [e, e] bool: whether a correction of one edit lies in a scope of the other


def find_overlaps(scope: Scope, corrections: Sequence[Sample]) -> Overlaps:
    """Compare every key with every key, some rows at a time to save memory."""
    owners, words = scope.owners.long(), [WordCounts.of(sample) for sample in corrections]
    num_edits = int(owners.max()) + 1
    shared = torch.zeros(num_edits, num_edits, dtype=torch.bool, device=owners.device)
    margin, deepest = torch.empty_like(scope.radii), torch.empty_like(owners)
    for rows in torch.split(torch.arange(len(owners), device=owners.device), _ROWS):
        known = KnownLookups([words[row] for row in rows.tolist()], scope.first_tokens.rows(rows))
        depth = scope.likeness(scope.keys[rows], known) - scope.radii  # [r, k]
        margin[rows], nearest = depth.max(-1)
        deepest[rows] = owners[nearest]
        row, key = (depth > 0).nonzero(as_tuple=True)
        shared[owners[rows][row], owners[key]] = True
    return Overlaps(margin, deepest, shared | shared.T)


def scope_warnings(likeness: Tensor, overlaps: Overlaps, owners: Tensor, batch: EditBatch) -> tuple[str, ...]:
    """All warnings, at most a few of each kind.

    Args:
        likeness: scores of pass samples at keys [p, k].
        owners: edits of the keys [k].
    """
    return (
        *first_few(_indistinct(likeness, owners, batch), "edits that are near-duplicates of pass samples"),
        *first_few(_overlapping(overlaps, batch), "pairs of edits in one scope with different targets"),
        *first_few(
            _elsewhere(overlaps, owners, batch), "corrections that lie deeper in another edit's scope"
        ),
    )


def _indistinct(likeness: Tensor, owners: Tensor, batch: EditBatch) -> Iterator[str]:
    """One warning per edit that is a near-duplicate of a pass sample."""
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
            f"the scope of {_named(batch.edit_samples[edit])} cannot be told from the pass sample "
            f"{_named(batch.pass_samples[kept])}"
        )


def _overlapping(overlaps: Overlaps, batch: EditBatch) -> Iterator[str]:
    """One warning per pair of edits in one scope with different targets."""
    kinds: dict[object, int] = {}
    wanted = [kinds.setdefault(edit.goal, len(kinds)) for edit in batch.edit_samples]
    targets = torch.tensor(wanted, device=overlaps.shared.device)
    conflicting = (overlaps.shared & (targets[:, None] != targets)).triu(1)
    for one, other in conflicting.nonzero().tolist():
        first, second = batch.edit_samples[one], batch.edit_samples[other]
        yield (
            f"{_named(first)} and {_named(second)} lie in one scope but have different targets; an "
            "input in both scopes gets the answer of the one that it lies deeper in"
        )


def _elsewhere(overlaps: Overlaps, owners: Tensor, batch: EditBatch) -> Iterator[str]:
    """One warning per correction that gets the answer of another edit."""
    won = zip(batch.corrections, owners.tolist(), overlaps.deepest.tolist(), strict=True)
    for sample, owner, winner in won:
        own, other = batch.edit_samples[int(owner)], batch.edit_samples[int(winner)]
        if own.goal != other.goal:
            yield (
                f"{_named(sample)} lies deeper in the scope of {_named(other)} than in its own and "
                "gets that answer: correct it in a later job, whose entries take precedence"
            )


def _named(sample: TextInput) -> str:
    """A sample as a message quotes it, with its pair: other samples may have the same text."""
    return quote(sample.input) + (f" / {quote(sample.text_pair)}" if sample.text_pair else "")
