"""Measures a version: what it answers to edits, paraphrases and held-out pass samples, before and after.

The figures and their sources are defined in docs/metrics.md. Knows predictions and samples; does not know
how the delta was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from salem.answers import same_answer
from salem.records import EditBatch, EditOutcome, Flip, Metrics, Prediction, Proportion, Sample, TextInput
from worker.intervals import paired_drop, proportion

Answerer = Callable[[Sequence[TextInput]], list[Prediction]]
Kind = Literal["edit", "adapt", "held_out_paraphrase"]


def evaluate(
    batch: EditBatch, before: Answerer, after: Answerer, *, generates: bool, notes: Sequence[str] = ()
) -> Metrics:
    """Measure on all that the batch holds. `before` answers as the parent, `after` as the new version."""
    outcomes = _outcomes(batch, before, after)
    flips, drawdown, consistency = _drawdown(batch.held_out_pass_samples, before, after)
    edit_accuracy = _accuracy(outcomes, "edit")
    assert edit_accuracy is not None, "an edit batch holds at least one edit"
    return Metrics(
        edit_accuracy=edit_accuracy,
        adapt_accuracy=_accuracy(outcomes, "adapt"),
        generalisation=_accuracy(outcomes, "held_out_paraphrase"),
        drawdown=drawdown,
        consistency=consistency,
        protocol="free generation" if generates else "argmax",
        outcomes=outcomes,
        flips=flips,
        notes=(*_missing_figures(batch), *notes),
    )


def _outcomes(batch: EditBatch, before: Answerer, after: Answerer) -> tuple[EditOutcome, ...]:
    measured: list[tuple[int, Kind, Sample]] = [(i, "edit", s) for i, s in enumerate(batch.edit_samples)]
    measured += [(i, "adapt", s) for i, s in batch.adapt_samples]
    measured += [(i, "held_out_paraphrase", s) for i, s in batch.held_out_paraphrases]
    samples = [sample for _, _, sample in measured]
    return tuple(
        EditOutcome(
            edit=index,
            kind=kind,
            input=sample.input,
            text_pair=sample.text_pair,
            target=sample.target,
            before=old.output,
            after=new.output,
            correct=same_answer(new.output, sample.target),
        )
        for (index, kind, sample), old, new in zip(measured, before(samples), after(samples), strict=True)
    )


def _accuracy(outcomes: Sequence[EditOutcome], kind: Kind) -> Proportion | None:
    return proportion([outcome.correct for outcome in outcomes if outcome.kind == kind])


def _drawdown(
    samples: Sequence[Sample], before: Answerer, after: Answerer
) -> tuple[tuple[Flip, ...], Proportion | None, Proportion | None]:
    """The samples whose answer changed, the drawdown, and the share whose answer did not change."""
    if not samples:
        return (), None, None
    old = [answer.output for answer in before(samples)]
    new = [answer.output for answer in after(samples)]
    right_before = [same_answer(o, s.target) for o, s in zip(old, samples, strict=True)]
    right_after = [same_answer(n, s.target) for n, s in zip(new, samples, strict=True)]
    changed = [not same_answer(o, n) for o, n in zip(old, new, strict=True)]
    flips = tuple(
        Flip(
            input=sample.input,
            text_pair=sample.text_pair,
            target=sample.target,
            before=old[i],
            after=new[i],
            broken=right_before[i] and not right_after[i],
        )
        for i, sample in enumerate(samples)
        if changed[i]
    )
    return flips, paired_drop(right_before, right_after), proportion([not change for change in changed])


def _missing_figures(batch: EditBatch) -> list[str]:
    notes: list[str] = []
    if not batch.held_out_paraphrases:
        notes.append("generalisation was not measured: no edit has two paraphrases or more")
    if not batch.held_out_pass_samples:
        notes.append("drawdown was not measured: there are no held-out pass samples")
    if not batch.pass_samples:
        notes.append("nothing held the other answers in place: there were no pass samples to train on")
    return notes
