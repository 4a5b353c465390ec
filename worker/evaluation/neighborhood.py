"""Measures the near neighbors of edits: whether they keep the answer that they have without the edits.

Must not know where neighbors come from, or how deltas are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Protocol

from salem.inference.predict import same_answer
from salem.messages import quote, quote_difference
from salem.models.chat import TurnFinder
from salem.records import BrokenNeighbor, DetailedMetrics, EditBatch, Neighbor, Proportion, Sample, TextInput
from worker.numerics.intervals import proportion

FEW_NEIGHBORS = 20  # with fewer, a note says how few there are
FEW_PASS_SAMPLES = 100
NUM_SHOWN = 3  # broken neighbors in a note


class Answers(Protocol):
    """Something that answers inputs, such as a version."""

    def answers(self, inputs: Sequence[TextInput]) -> list[str]: ...


class EditedAnswers(Answers, Protocol):
    """A version that also says for which inputs its newest delta may change the answer."""

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]: ...


def measure_neighbors(
    batch: EditBatch, before: Answers, after: EditedAnswers
) -> tuple[Proportion | None, tuple[BrokenNeighbor, ...]]:
    """The share of held-out neighbors that keep their answer, and the neighbors that do not.

    A neighbor with a target also counts as kept if the target is its answer now. The client's neighbors are
    all checked, but only held-out ones count in the share.

    Args:
        before: answers without the edits of the batch.
    """
    calibrating = [each for each in batch.neighbors if each.origin == "client"]
    neighbors = [*batch.held_out_neighbors, *calibrating]
    asked = list(compress(range(len(neighbors)), after.may_differ(neighbors)))
    inputs = [neighbors[place] for place in asked]
    answers = zip(asked, before.answers(inputs), after.answers(inputs), strict=True)
    num_held_out = len(batch.held_out_neighbors)
    broken = tuple(
        BrokenNeighbor(**dict(neighbors[place]), before=old, after=new, held_out=place < num_held_out)
        for place, old, new in answers
        if not _kept(neighbors[place], old, new)
    )
    num_broken = sum(each.held_out for each in broken)
    return proportion([place >= num_broken for place in range(num_held_out)]), broken


def _kept(neighbor: Neighbor, old: str, new: str) -> bool:
    correct = neighbor.target is not None and same_answer(new, neighbor.target)
    return correct or same_answer(old, new)


def notes_on_neighbors(
    metrics: DetailedMetrics, edits: Sequence[Sample], finder: TurnFinder
) -> Iterator[str]:
    """Notes on the neighbors that an edit breaks, and on figures that rest on few samples."""
    found = metrics.neighborhood
    if found is None:
        yield "neighborhood was not measured: no near neighbors are held out; send neighbors with the edits"
    elif found.count < FEW_NEIGHBORS:
        yield f"neighborhood rests on only {found.count} near neighbors; send more with the edits"
    for is_held_out, share in ((True, f"of {found.count if found else 0}"), (False, "more")):
        broken = [each for each in metrics.broken_neighbors if each.held_out is is_held_out]
        if broken:
            what = "near neighbors" if is_held_out else "neighbors of the request"
            shown = "; ".join(_named(each, edits[each.edit], finder) for each in _typical(broken))
            yield f"{len(broken)} {share} {what} changed their answer, such as {shown}"
    if metrics.drawdown is not None and metrics.drawdown.count < FEW_PASS_SAMPLES:
        yield (
            f"drawdown rests on only {metrics.drawdown.count} held-out pass samples; add samples to the "
            "reference set to see what else changed"
        )


def _typical(broken: Sequence[BrokenNeighbor]) -> list[BrokenNeighbor]:
    """A few broken neighbors: the client's first, then one of each kind."""
    kinds: list[str] = []
    ranked: list[tuple[bool, int, int]] = []
    for place, each in enumerate(broken):
        ranked.append((each.origin != "client", kinds.count(each.kind), place))
        kinds.append(each.kind)
    return [broken[place] for _, _, place in sorted(ranked)[:NUM_SHOWN]]


def _named(neighbor: BrokenNeighbor, edit: Sample, finder: TurnFinder) -> str:
    """What tells the neighbor from its edit, and its answers before and after."""
    text = quote_difference(finder.question(neighbor.input), finder.question(edit.input))
    if neighbor.text_pair:
        text = f"{text} / {quote_difference(neighbor.text_pair, edit.text_pair or '')}"
    return f"{text} ({neighbor.kind}): it was {quote(neighbor.before)}, now {quote(neighbor.after)}"
