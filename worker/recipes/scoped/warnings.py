"""What a job is warned of about its scopes: edits like what is to stay, or in each other's way.

Knows keys, likenesses and texts. Does not know how scopes are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.messages import a_few, quoted
from salem.records import EditBatch, Sample, TextInput
from salem.scope.lexical import WordCounts
from salem.scope.lookups import KnownLookups
from salem.scope.scope import Scope

INDISTINCT = 0.97  # likeness from which on a pass sample and a key can hardly be told apart
_ROWS = 1_024  # of keys that are compared with all keys at a time


@dataclass(frozen=True)
class Meeting:
    """How the corrections of a job lie in one another's scopes; each is a key."""

    inside: Tensor  # [k] how far inside the scope that it lies deepest in
    deepest: Tensor  # [k] int64: the edit whose scope that is
    shared: Tensor  # [e, e] bool: whether a correction of one edit lies in a scope of the other


def meet(scope: Scope, corrections: Sequence[Sample]) -> Meeting:
    """Compare every key with every key, so many at a time that the table of all never exists."""
    owners, wordings = scope.owners.long(), [WordCounts.of(sample) for sample in corrections]
    num_edits = int(owners.max()) + 1
    shared = torch.zeros(num_edits, num_edits, dtype=torch.bool, device=owners.device)
    inside, deepest = torch.empty_like(scope.radii), torch.empty_like(owners)
    for rows in torch.split(torch.arange(len(owners), device=owners.device), _ROWS):
        known = KnownLookups([wordings[row] for row in rows.tolist()], scope.first_tokens.rows(rows))
        depth = scope.likeness(scope.keys[rows], known) - scope.radii  # [r, k]
        inside[rows], nearest = depth.max(-1)
        deepest[rows] = owners[nearest]
        row, key = (depth > 0).nonzero(as_tuple=True)
        shared[owners[rows][row], owners[key]] = True
    return Meeting(inside, deepest, shared | shared.T)


def scope_warnings(likeness: Tensor, meeting: Meeting, owners: Tensor, batch: EditBatch) -> tuple[str, ...]:
    """All warnings, a few of each kind.

    Args:
        likeness: of pass samples to keys [p, k].
        owners: of the keys [k].
    """
    return (
        *a_few(_indistinct(likeness, owners, batch), "edits whose scopes cannot be told from pass samples"),
        *a_few(_overlapping(meeting, batch), "pairs of edits in one scope with different targets"),
        *a_few(_elsewhere(meeting, owners, batch), "corrections that lie deeper in another's scope"),
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
            f"the scope of {_named(batch.edit_samples[edit])} cannot be told from the pass sample "
            f"{_named(batch.pass_samples[kept])}"
        )


def _overlapping(meeting: Meeting, batch: EditBatch) -> Iterator[str]:
    """One warning per pair of edits of which one lies in the other's scope and wants another answer."""
    kinds: dict[object, int] = {}
    wanted = [kinds.setdefault(edit.becomes, len(kinds)) for edit in batch.edit_samples]
    asked = torch.tensor(wanted, device=meeting.shared.device)
    apart = (meeting.shared & (asked[:, None] != asked)).triu(1)
    for one, other in apart.nonzero().tolist():
        first, second = batch.edit_samples[one], batch.edit_samples[other]
        yield (
            f"{_named(first)} and {_named(second)} lie in one scope but have different targets; what "
            "both hold is answered by the one that it lies deeper in"
        )


def _elsewhere(meeting: Meeting, owners: Tensor, batch: EditBatch) -> Iterator[str]:
    """One warning per correction that is answered as another edit."""
    won = zip(batch.corrections, owners.tolist(), meeting.deepest.tolist(), strict=True)
    for sample, owner, winner in won:
        own, other = batch.edit_samples[int(owner)], batch.edit_samples[int(winner)]
        if own.becomes != other.becomes:
            yield (
                f"{_named(sample)} lies deeper in the scope of {_named(other)} than in its own and is "
                "answered as that: correct it in a later job, whose entries prevail"
            )


def _named(sample: TextInput) -> str:
    """A sample as a message quotes it, with its pair: others may have the same text."""
    return quoted(sample.input) + (f" / {quoted(sample.text_pair)}" if sample.text_pair else "")
