"""Warnings about a job's scopes: edits close to pass samples, and edits in each other's scopes.

Must not know how scopes are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.messages import first_few, quote
from salem.models.chat import TurnFinder
from salem.records import EditBatch, Sample, TextInput
from worker.dataset.augmentation import WHOLE

_ROWS = 1_024  # keys compared with all keys at a time


@dataclass(frozen=True)
class Overlaps:
    """How the corrections of a job lie in each other's scopes. Each correction is a key."""

    owners: Tensor  # [k] int64: the edit of each key
    margin: Tensor  # [k] how far inside its deepest scope each lies
    deepest: Tensor  # [k] int64: the edit of that scope
    shared: Tensor  # [e, e] bool: whether a correction of one edit lies in a scope of the other


def find_overlaps(owners: Tensor, margins: Callable[[Tensor], Tensor]) -> Overlaps:
    """Compare every key with every key, some rows at a time to save memory.

    Args:
        owners: [k] the edit of each key; each correction of the job is a key.
        margins: how far inside each scope the corrections at some rows [r] lie -> [r, k].
    """
    owners = owners.long()
    num_edits = int(owners.max()) + 1
    shared = torch.zeros(num_edits, num_edits, dtype=torch.bool, device=owners.device)
    margin = torch.empty(len(owners), device=owners.device)
    deepest = torch.empty_like(owners)
    for rows in torch.split(torch.arange(len(owners), device=owners.device), _ROWS):
        depth = margins(rows)  # [r, k]
        margin[rows], nearest = depth.max(-1)
        deepest[rows] = owners[nearest]
        row, key = (depth > 0).nonzero(as_tuple=True)
        shared[owners[rows][row], owners[key]] = True
    return Overlaps(owners, margin, deepest, shared | shared.T)


def scope_warnings(
    indistinct: Tensor, likeness: Tensor, overlaps: Overlaps, batch: EditBatch, turns: TurnFinder = WHOLE
) -> tuple[str, ...]:
    """All warnings, at most a few of each kind.

    Args:
        indistinct: [p, k] whether a scope cannot tell a pass sample from its key.
        likeness: [p, k] of pass samples to keys.
        turns: finds the last user turn, which messages quote instead of the whole prompt.
    """
    batch = _with_last_turns(batch, turns)
    return (
        *first_few(
            _indistinct(indistinct, likeness, overlaps.owners, batch),
            "edits that are near-duplicates of pass samples",
        ),
        *first_few(_overlapping(overlaps, batch), "pairs of edits in one scope with different targets"),
        *first_few(_elsewhere(overlaps, batch), "corrections that lie deeper in another edit's scope"),
    )


def _with_last_turns(batch: EditBatch, turns: TurnFinder) -> EditBatch:
    """The edits, paraphrases, and pass samples of a batch, without the template around the last user turn."""

    def short(sample: Sample) -> Sample:
        return sample.model_copy(update={"input": turns.question(sample.input)})

    return batch.model_copy(
        update={
            "edit_samples": tuple(map(short, batch.edit_samples)),
            "adapt_samples": tuple((edit, short(sample)) for edit, sample in batch.adapt_samples),
            "pass_samples": tuple(map(short, batch.pass_samples)),
        }
    )


def _indistinct(indistinct: Tensor, likeness: Tensor, owners: Tensor, batch: EditBatch) -> Iterator[str]:
    """One warning per edit that is a near-duplicate of a pass sample."""
    if not len(likeness):
        return
    which = likeness.argmax(0)  # [k]
    close = {
        int(owner): int(place)
        for owner, place, near in zip(owners, which, indistinct.any(0), strict=True)
        if near
    }
    for edit, kept in close.items():
        yield (
            f"the scope of {_named(batch.edit_samples[edit])} cannot be told apart from the pass sample "
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


def _elsewhere(overlaps: Overlaps, batch: EditBatch) -> Iterator[str]:
    """One warning per correction that gets the answer of another edit."""
    won = zip(batch.corrections, overlaps.owners.tolist(), overlaps.deepest.tolist(), strict=True)
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
