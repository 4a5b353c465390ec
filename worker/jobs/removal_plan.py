"""Takes edits out of a chain of deltas.

Entries of a scoped delta act alone, so dropping one changes nothing about the others: what is left of its
tensors stays bit for bit, as it came of a job that had the dropped edits beside it. A plain delta is one
change made for all its edits together, and whatever was trained above stands on it: from the first plain
delta that loses an edit, the chain is made again, job by job, which is unlearning in the strict sense of
Bourtoule et al., "Machine Unlearning" (IEEE S&P 2021), section III.

Pure functions on records and tensors. Does not know how a delta is trained, nor where anything is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum

import torch

from salem.deltas.terms import LayerDelta, Scoped
from salem.records import Delta, EditBatch, EditRequest, Sample
from salem.scope.scope import Scope

OF_A_KEY = tuple(field.name for field in fields(Scope) if field.name not in ("metric", "owners"))


class Change(Enum):
    """What becomes of a delta."""

    KEEP = "keep"
    DROP = "drop"  # entries from it
    REPLAY = "replay"


@dataclass(frozen=True)
class Step:
    """One delta of the new chain, and how it comes from the old one."""

    delta: Delta
    change: Change
    removed: tuple[int, ...]  # places of all edits that are not in it any more


def plan(
    deltas: Sequence[Delta], gone: Mapping[int, Collection[int]], num_edits: Mapping[int, int]
) -> tuple[Step, ...]:
    """The new chain. A delta that is left without edits is not in it.

    Args:
        deltas: the old chain, oldest first.
        gone: by the version that brought them, the places of edits to be removed.
        num_edits: by version, how many edits it brought.
    """
    steps: list[Step] = []
    replaying = False
    for delta in deltas:
        assert delta.version is not None, "a published delta has its number"
        lost = gone.get(delta.version, ())
        removed = tuple(sorted({*delta.removed, *lost}))
        replaying = replaying or (bool(lost) and delta.kind != "scoped")
        if len(removed) < num_edits[delta.version]:
            change = Change.REPLAY if replaying else Change.DROP if lost else Change.KEEP
            steps.append(Step(delta, change, removed))
    return tuple(steps)


def reduced(request: EditRequest, removed: Collection[int]) -> EditRequest:
    """The request as it would have been without the edits at these places."""
    left = tuple(edit for index, edit in enumerate(request.edits) if index not in removed)
    return request.model_copy(update={"edits": left})


def cut(delta: LayerDelta, entries: Collection[int]) -> LayerDelta:
    """A scoped delta without these entries of its term."""
    terms = tuple(without(term, entries) if isinstance(term, Scoped) else term for term in delta.terms)
    return LayerDelta(delta.layer, terms)


def without(term: Scoped, entries: Collection[int]) -> Scoped:
    """The term without these entries and their keys; the others move up in their order, unchanged."""
    scope = term.scope
    old = scope.owners.long()  # [k]
    kept = old.new_tensor([entry for entry in range(len(term.values)) if entry not in entries])  # [e']
    numbers = old.new_full((len(term.values),), -1)  # [e]
    numbers[kept] = torch.arange(len(kept), device=old.device)
    owners = numbers[old]  # [k]
    keys = owners >= 0
    of_keys = {name: getattr(scope, name)[keys] for name in OF_A_KEY}
    scope = replace(scope, **of_keys, owners=owners[keys].to(scope.owners.dtype))
    return Scoped(scope, values=term.values[kept], down=term.down[kept], up=term.up[kept])


def remaining_batch(parts: Sequence[tuple[EditBatch, Collection[int]]]) -> EditBatch:
    """What a chain is measured on: the edits that are left, and what none of its trainings has seen.

    Args:
        parts: of each delta, oldest first, the batch that it was trained on and the places in it of the edits
            that are left.

    An edit whose input (white space aside) a later one answers differently is left out: the later one
    prevails. What one delta held out another may have been trained on: it measures nothing.
    """
    final = {s.words_hash: s.becomes for batch, left in parts for s in _samples(batch, left)}
    edits: list[Sample] = []
    adapt: list[tuple[int, Sample]] = []
    apart: list[tuple[int, Sample]] = []
    for batch, left in parts:
        places: dict[int, int] = {}
        for index in sorted(left):
            sample = batch.edit_samples[index]
            if final[sample.words_hash] == sample.becomes:
                places[index] = len(edits)
                edits.append(sample)
        for source, target in ((batch.adapt_samples, adapt), (batch.held_out_paraphrases, apart)):
            target += [(places[i], s) for i, s in source if i in places and final[s.words_hash] == s.becomes]
    trained = {s.words_hash for batch, _ in parts for s in batch.corrections}
    held_out = {s.content_hash: s for batch, _ in parts for s in batch.held_out_pass_samples}
    held_out_paraphrases = tuple((i, s) for i, s in apart if s.words_hash not in trained)
    return EditBatch(
        edit_samples=tuple(edits),
        adapt_samples=tuple(adapt),
        pass_samples=(),
        held_out_paraphrases=held_out_paraphrases,
        num_seen=len(apart) - len(held_out_paraphrases) + sum(batch.num_seen for batch, _ in parts),
        held_out_pass_samples=tuple(s for s in held_out.values() if s.words_hash not in final),
    )


def _samples(batch: EditBatch, left: Collection[int]) -> list[Sample]:
    """All that the edits that are left ask for."""
    reworded = (*batch.adapt_samples, *batch.held_out_paraphrases)
    return [batch.edit_samples[i] for i in left] + [sample for i, sample in reworded if i in left]
