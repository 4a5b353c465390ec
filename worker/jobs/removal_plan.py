"""Plans the removal of edits from a chain of deltas.

Entries of a scoped delta act independently: if you drop one, the tensors of the others stay bit-equal. A
plain delta is one change for all its edits together, and later deltas were trained on top of it. So the chain
is trained again, job by job, from the first plain delta that loses an edit. This is unlearning in the strict
sense of Bourtoule et al., "Machine Unlearning" (IEEE S&P 2021), section III.

Pure functions on records and tensors. Must not know how a delta is trained or where anything is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from salem.deltas.terms import LayerDelta, Scoped
from salem.records import Delta, EditBatch, EditRequest, Neighbor, Sample
from worker.dataset.neighbors import IN_ALL


class Change(Enum):
    """What happens to a delta."""

    KEEP = "keep"
    DROP = "drop"  # some of its entries
    REPLAY = "replay"


@dataclass(frozen=True)
class Step:
    """One delta of the old chain, and what happens to it."""

    delta: Delta
    change: Change
    removed: tuple[int, ...]  # indexes of all edits that are no longer in it


def plan(
    deltas: Sequence[Delta], to_remove: Mapping[int, Collection[int]], num_edits: Mapping[int, int]
) -> tuple[Step, ...]:
    """The steps to the new chain. A delta without remaining edits is left out.

    Args:
        deltas: the old chain, oldest first.
        to_remove: the indexes of the edits to remove, by the version that introduced them.
        num_edits: how many edits each version introduced.
    """
    steps: list[Step] = []
    replaying = False
    for delta in deltas:
        assert delta.version is not None, "a published delta has a version"
        lost = to_remove.get(delta.version, ())
        removed = tuple(sorted({*delta.removed, *lost}))
        replaying = replaying or (bool(lost) and delta.kind != "scoped")
        if len(removed) < num_edits[delta.version]:
            change = Change.REPLAY if replaying else Change.DROP if lost else Change.KEEP
            steps.append(Step(delta, change, removed))
    return tuple(steps)


def reduced(request: EditRequest, removed: Collection[int]) -> EditRequest:
    """The request without the edits at these indexes."""
    left = tuple(edit for index, edit in enumerate(request.edits) if index not in removed)
    return request.model_copy(update={"edits": left})


def cut(delta: LayerDelta, entries: Collection[int]) -> LayerDelta:
    """A scoped delta without these entries of its term."""
    terms = tuple(without(term, entries) if isinstance(term, Scoped) else term for term in delta.terms)
    return LayerDelta(delta.layer, terms)


def without(term: Scoped, entries: Collection[int]) -> Scoped:
    """The term without these entries and their keys. The others keep their order and values."""
    scope = term.scope
    old = scope.owners.long()  # [k]
    kept = old.new_tensor([entry for entry in range(len(term.values)) if entry not in entries])  # [e']
    numbers = old.new_full((len(term.values),), -1)  # [e]
    numbers[kept] = torch.arange(len(kept), device=old.device)
    owners = numbers[old]  # [k]
    keys = owners >= 0
    scope = replace(scope.rows(keys), owners=owners[keys].to(scope.owners.dtype))
    return Scoped(scope, values=term.values[kept], down=term.down[kept], up=term.up[kept])


def remaining_batch(parts: Sequence[tuple[EditBatch, Collection[int]]]) -> EditBatch:
    """The batch that measures a chain: the remaining edits, and held-out samples that no delta trained on.

    Args:
        parts: for each delta, oldest first, the batch that it was trained on and the rows of its remaining
            edits.

    An edit is left out if a later one gives the same input (ignoring white space) another answer.
    """
    final = {s.words_hash: s.goal for batch, left in parts for s in _samples(batch, left)}
    edits: list[Sample] = []
    adapt: list[tuple[int, Sample]] = []
    held_out_pairs: list[tuple[int, Sample]] = []
    neighbors: list[Neighbor] = []
    for batch, left in parts:
        places: dict[int, int] = {}
        for index in sorted(left):
            sample = batch.edit_samples[index]
            if final[sample.words_hash] == sample.goal:
                places[index] = len(edits)
                edits.append(sample)
        for source, target in ((batch.adapt_samples, adapt), (batch.held_out_paraphrases, held_out_pairs)):
            target += [(places[i], s) for i, s in source if i in places and final[s.words_hash] == s.goal]
        neighbors += [
            each.model_copy(update={"edit": places[each.edit]})
            for each in batch.held_out_neighbors
            if each.edit in places
        ]
    trained = {s.words_hash for batch, _ in parts for s in batch.corrections}
    held_out = {s.content_hash: s for batch, _ in parts for s in batch.held_out_pass_samples}
    held_out_paraphrases = tuple((i, s) for i, s in held_out_pairs if s.words_hash not in trained)
    return EditBatch(
        edit_samples=tuple(edits),
        adapt_samples=tuple(adapt),
        pass_samples=(),
        held_out_paraphrases=held_out_paraphrases,
        num_seen=len(held_out_pairs) - len(held_out_paraphrases) + sum(batch.num_seen for batch, _ in parts),
        held_out_pass_samples=tuple(s for s in held_out.values() if s.words_hash not in final),
        held_out_neighbors=_measured_neighbors(parts, neighbors, final),
    )


def _measured_neighbors(
    parts: Sequence[tuple[EditBatch, Collection[int]]], neighbors: Sequence[Neighbor], edited: Collection[str]
) -> tuple[Neighbor, ...]:
    """Neighbors that no delta was calibrated on and that no edit changes, each once; at most `IN_ALL`."""
    seen = {each.words_hash for batch, _ in parts for each in (*batch.neighbors, *batch.pass_samples)}
    first: dict[str, Neighbor] = {}
    for each in neighbors:
        if each.words_hash not in seen and each.words_hash not in edited:
            first.setdefault(each.words_hash, each)
    return tuple(sorted(first.values(), key=lambda each: each.content_hash)[:IN_ALL])


def _samples(batch: EditBatch, left: Collection[int]) -> list[Sample]:
    """The remaining edits with their paraphrases."""
    paraphrases = (*batch.adapt_samples, *batch.held_out_paraphrases)
    return [batch.edit_samples[i] for i in left] + [sample for i, sample in paraphrases if i in left]
