"""Measures a version: its answers to edits, paraphrases, held-out pass samples, and near neighbors.

docs/metrics.md defines the metrics and their sources. Must not know how the delta was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple, Protocol

from salem.inference.predict import is_right, same_answer
from salem.records import (
    DetailedMetrics,
    EditBatch,
    EditOutcome,
    Extent,
    Flip,
    Forgetting,
    MeanExtent,
    Proportion,
    Sample,
    TextInput,
)
from worker.evaluation.neighborhood import EditedAnswers, measure_neighbors
from worker.numerics.intervals import paired_drop, proportion

Kind = Literal["edit", "adapt", "held_out_paraphrase"]
DIGITS = 6  # of ranks and probabilities, as in the scores of a prediction


class AnswerLikelihood(NamedTuple):
    """How likely an answer is; docs/metrics.md defines both fields for labels and for texts."""

    rank: float  # 1 is the most likely answer
    probability: float


class AnswerSource(Protocol):
    """Something that answers inputs, such as a version."""

    def answers(self, inputs: Sequence[TextInput]) -> list[str]: ...

    def answer_likelihoods(self, samples: Sequence[Sample]) -> list[AnswerLikelihood]: ...


class EditedSource(AnswerSource, EditedAnswers, Protocol):
    """A version that was made from another one."""


def evaluate(
    batch: EditBatch,
    before: AnswerSource,
    after: EditedSource,
    *,
    generates: bool,
    unedited: AnswerSource | None = None,
    notes: Sequence[str] = (),
) -> DetailedMetrics:
    """Measure the new version (`after`) against its parent (`before`) on all parts of the batch.

    Args:
        unedited: gives the answers of neighbors without the edits of the batch; by default the parent.
    """
    outcomes = _outcomes(batch, before, after)
    flips, drawdown, locality = _drawdown(batch.held_out_pass_samples, before, after)
    neighborhood, broken = measure_neighbors(batch, unedited or before, after)
    edit_accuracy = _accuracy(outcomes, "edit")
    assert edit_accuracy is not None, "an edit batch holds at least one edit"
    return DetailedMetrics(
        edit_accuracy=edit_accuracy,
        adapt_accuracy=_accuracy(outcomes, "adapt"),
        generalization=_accuracy(outcomes, "held_out_paraphrase"),
        drawdown=drawdown,
        locality=locality,
        neighborhood=neighborhood,
        forgetting=_forgetting(outcomes),
        protocol="free generation" if generates else "argmax",
        outcomes=outcomes,
        flips=flips,
        broken_neighbors=broken,
        notes=(*_missing_metrics(batch), *notes),
    )


def _outcomes(batch: EditBatch, before: AnswerSource, after: AnswerSource) -> tuple[EditOutcome, ...]:
    measured: list[tuple[int, Kind, Sample]] = [(i, "edit", s) for i, s in enumerate(batch.edit_samples)]
    measured += [(i, "adapt", s) for i, s in batch.adapt_samples]
    measured += [(i, "held_out_paraphrase", s) for i, s in batch.held_out_paraphrases]
    samples = [sample for _, _, sample in measured]
    extents = _extents(samples, before, after)
    answers = zip(before.answers(samples), after.answers(samples), strict=True)
    return tuple(
        EditOutcome(
            edit=index,
            kind=kind,
            input=sample.input,
            text_pair=sample.text_pair,
            target=sample.target,
            forget=sample.forget,
            before=old,
            after=new,
            correct=is_right(new, sample),
            extent=extents.get(number),
        )
        for number, ((index, kind, sample), (old, new)) in enumerate(zip(measured, answers, strict=True))
    )


def _extents(samples: Sequence[Sample], before: AnswerSource, after: AnswerSource) -> dict[int, Extent]:
    """How far each sample that forgets has come, by its index."""
    indices = [index for index, sample in enumerate(samples) if sample.forgets]
    forgetting = [samples[index] for index in indices]
    if not forgetting:
        return {}
    return {
        index: Extent(
            rank_before=round(old.rank, DIGITS),
            rank_after=round(new.rank, DIGITS),
            probability_before=round(old.probability, DIGITS),
            probability_after=round(new.probability, DIGITS),
        )
        for index, old, new in zip(
            indices,
            before.answer_likelihoods(forgetting),
            after.answer_likelihoods(forgetting),
            strict=True,
        )
    }


def _forgetting(outcomes: Sequence[EditOutcome]) -> Forgetting | None:
    edit = _mean_extent(outcomes, "edit")
    if edit is None:
        return None
    others = {kind: _mean_extent(outcomes, kind) for kind in ("adapt", "held_out_paraphrase")}
    return Forgetting(edit=edit, **others)


def _mean_extent(outcomes: Sequence[EditOutcome], kind: Kind) -> MeanExtent | None:
    extents = [outcome.extent for outcome in outcomes if outcome.kind == kind and outcome.extent]
    if not extents:
        return None
    means = {
        name: round(fmean(getattr(extent, name) for extent in extents), DIGITS)
        for name in Extent.model_fields
    }
    return MeanExtent(**means, count=len(extents))


def _accuracy(outcomes: Sequence[EditOutcome], kind: Kind) -> Proportion | None:
    return proportion([outcome.correct for outcome in outcomes if outcome.kind == kind])


def _drawdown(
    samples: Sequence[Sample], before: AnswerSource, after: AnswerSource
) -> tuple[tuple[Flip, ...], Proportion | None, Proportion | None]:
    """The samples whose answer changed, the drawdown, and the locality."""
    if not samples:
        return (), None, None
    old, new = before.answers(samples), after.answers(samples)
    correct_before = [is_right(o, s) for o, s in zip(old, samples, strict=True)]
    correct_after = [is_right(n, s) for n, s in zip(new, samples, strict=True)]
    changed = [not same_answer(o, n) for o, n in zip(old, new, strict=True)]
    flips = tuple(
        Flip(
            input=sample.input,
            text_pair=sample.text_pair,
            target=sample.answer,
            before=old[i],
            after=new[i],
            broken=correct_before[i] and not correct_after[i],
        )
        for i, sample in enumerate(samples)
        if changed[i]
    )
    return flips, paired_drop(correct_before, correct_after), proportion([not change for change in changed])


def _missing_metrics(batch: EditBatch) -> list[str]:
    notes: list[str] = []
    if not batch.held_out_paraphrases and batch.num_seen:
        notes.append(
            f"generalization was not measured: earlier jobs were trained on all {batch.num_seen} paraphrases "
            "that would be held out"
        )
    elif not batch.held_out_paraphrases:
        notes.append("generalization was not measured: no edit has two or more paraphrases")
    if not batch.held_out_pass_samples:
        notes.append("drawdown was not measured: there are no held-out pass samples")
    return notes
