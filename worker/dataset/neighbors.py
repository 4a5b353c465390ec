"""Near neighbors of edits: inputs that are close to an edit and must keep their answer.

They come from the client, from the job's other edits and the reference set (the same frame about another
subject, another question about the same subject, pairs that share a text), and from rules. About half of them
calibrate scopes; the other half only measures. The content of a neighbor decides which, so it is the same for
every job. Pure functions of texts. Must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence

from salem.records import Edit, EditBatch, Neighbor, held_out
from worker.dataset.near_samples import NearSamples
from worker.dataset.neighbor_sources import Topic, candidates

PER_EDIT = 12  # generated neighbors of one edit
IN_ALL = 600  # generated neighbors of a job
HELD_OUT_SHARE = 0.5


def add_neighbors(
    batch: EditBatch, edits: Sequence[Edit], near: NearSamples, *, generates: bool
) -> EditBatch:
    """The batch with the neighbors of its edits: those for calibration, and those that only measure.

    A reference sample is held out as a neighbor if it is held out as a pass sample.
    """
    made = [*given_neighbors(edits), *generate_neighbors(edits, near, generates=generates)]
    apart = [near.held_out.get(each.words_hash, held_out(each.content_hash, HELD_OUT_SHARE)) for each in made]
    halves = {
        half: tuple(each for each, is_apart in zip(made, apart, strict=True) if is_apart is half)
        for half in (False, True)
    }
    return batch.model_copy(update={"neighbors": halves[False], "held_out_neighbors": halves[True]})


def given_neighbors(edits: Sequence[Edit]) -> list[Neighbor]:
    """The neighbors that the client sent, in order; one that several edits name belongs to the first."""
    found: dict[str, Neighbor] = {}
    for index, edit in enumerate(edits):
        for neighbor in edit.neighbors:
            named = Neighbor(**dict(neighbor), edit=index, kind="given", origin="client")
            found.setdefault(named.words_hash, named)
    return list(found.values())


def generate_neighbors(edits: Sequence[Edit], near: NearSamples, *, generates: bool) -> list[Neighbor]:
    """Neighbors from other edits, the reference set, and rules, ordered by edit.

    None of them is the text of an edit, a paraphrase, or another neighbor. Each edit gets at most `PER_EDIT`;
    a job gets at most `IN_ALL`, so with many edits each gets fewer.

    Args:
        near: the reference set.
        generates: whether the model writes texts. Questions and facts make no sense for labels.
    """
    topics = [Topic.of(index, edit, near) for index, edit in enumerate(edits)]
    taken = {sample.words_hash for edit in edits for sample in (edit.sample, *edit.paraphrase_samples)}
    taken |= {neighbor.words_hash for edit in edits for neighbor in edit.neighbors}
    per_edit = min(PER_EDIT, max(1, IN_ALL // max(1, len(edits))))
    chosen = sorted(topics, key=lambda topic: topic.edit.content_hash)[: IN_ALL // per_edit]
    found: list[Neighbor] = []
    for topic in sorted(chosen, key=lambda each: each.index):
        new: list[Neighbor] = []
        for neighbor in candidates(topic, topics, near, generates=generates):
            if len(new) == per_edit:
                break
            if neighbor.words_hash not in taken and neighbor.input.strip():
                taken.add(neighbor.words_hash)
                new.append(neighbor)
        found += new
    return found
