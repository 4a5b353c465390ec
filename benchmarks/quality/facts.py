"""Corrections of the quality benchmark, and how corrections of facts are made: against what the model knows.

Does not know where data sets and models are kept, or how a job draws its samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salem.inference.predict import predict, same_answer
from salem.models.network import Network
from salem.records import Edit, Record, Sample

MAX_NEW_TOKENS = 24  # longer than every target, so that an answer that goes on counts as wrong


class Correction(Record):
    """One edit, and the questions that measure it; training never sees the questions."""

    edit: Edit  # its paraphrases are the adapt samples
    held_out_paraphrases: tuple[Sample, ...] = ()
    neighbors: tuple[Sample, ...] = ()  # their answers must not change (Yao et al. 2023)
    portability: tuple[Sample, ...] = ()  # questions that follow from the new answer (Yao et al. 2023)
    restatements: tuple[Sample, ...] = ()  # reference samples that ask for the edited fact


@dataclass(frozen=True)
class Made:
    """What a builder finds out about a base model."""

    corrections: tuple[Correction, ...]
    num_hard: int
    kept: tuple[Sample, ...]
    training_passages: tuple[Sample, ...] = ()
    accuracy: float | None = None


def corrections_of_facts(
    network: Network,
    reference: Sequence[Sample],
    rows: Sequence[dict[str, Any]],
    *,
    restates: bool = False,
) -> Made:
    """Counterfactual edits whose one human paraphrase the base answers with the old fact.

    Leaves out edits whose paraphrase is new to the base. It gets about half of those wrong anyway, so you
    could not tell a failed edit from a question that the base never understood.

    Args:
        restates: whether the reference set asks for one fact in several ways. Samples that name an edit's
            subject and have its old answer become its restatements: the edit makes them wrong, so they are
            neither pass samples nor held out. Of the rows that correct the same fact, the first is used: most
            of them want different answers, and no model can give one fact two answers.
    """
    by_answer: dict[str, list[Sample]] = defaultdict(list)
    for sample in reference if restates else ():
        by_answer[sample.answer].append(sample)
    known = [row for row in rows if row["paraphrase_trained"]]
    before = predict(network, [_edit(row) for row in known], max_new_tokens=MAX_NEW_TOKENS)
    pairs = zip(known, before, strict=True)
    contradicting = [row for row, answer in pairs if not same_answer(answer.output, row["target"])]
    chosen = _one_per_fact(contradicting) if restates else contradicting
    corrections = [_correction(row, by_answer) for row in chosen]
    answers = predict(network, reference, max_new_tokens=MAX_NEW_TOKENS)
    kept = tuple(s for s, a in zip(reference, answers, strict=True) if same_answer(a.output, s.target))
    return Made(tuple(corrections), len(corrections), kept, accuracy=len(kept) / len(reference))


def _edit(row: dict[str, Any]) -> Edit:
    return Edit(input=row["prompt"], target=row["target"])


def _one_per_fact(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each fact: of a subject and the answer that the edit replaces."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first.setdefault((row["subject"].casefold(), row["ground_truth"]), row)
    return list(first.values())


def _correction(row: dict[str, Any], by_answer: Mapping[str, Sequence[Sample]]) -> Correction:
    edit = _edit(row)
    with_paraphrases = edit.model_copy(update={"paraphrases": tuple(row["paraphrases"])})
    return Correction(
        edit=edit,
        held_out_paraphrases=with_paraphrases.paraphrase_samples,
        neighbors=tuple(Sample(input=n["prompt"], target=n["answer"]) for n in row["locality"]),
        portability=tuple(
            Sample(input=n["prompt"], target=n["answer"]) for n in row.get("portability") or ()
        ),
        restatements=tuple(
            sample
            for sample in by_answer.get(row.get("ground_truth", ""), ())
            if row["subject"].casefold() in sample.input.casefold()
        ),
    )
