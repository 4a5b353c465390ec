"""Corrections of the quality benchmark, and how those of facts are made: against what the model knows.

Does not know where data sets and models are kept, or how a job is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salem.inference.predict import predict, same_answer
from salem.models.network import Network
from salem.records import Edit, Record, Sample

MAX_NEW_TOKENS = 24  # longer than every target: an answer that goes on is a wrong one


class Correction(Record):
    """What may be edited, and what is asked about it afterwards; none of that is seen in training."""

    edit: Edit  # its paraphrases are the adapt samples
    reworded: tuple[Sample, ...] = ()  # the same in other words, held out
    neighborhood: tuple[Sample, ...] = ()  # neighbors whose answers are to stay (Yao et al. 2023)
    portability: tuple[Sample, ...] = ()  # what follows from the new answer (Yao et al. 2023)
    restated: tuple[Sample, ...] = ()  # reference samples that ask for the edited fact: they cannot stay


@dataclass(frozen=True)
class Made:
    """What a builder found out about a base."""

    corrections: tuple[Correction, ...]
    num_hard: int
    kept: tuple[Sample, ...]
    studied: tuple[Sample, ...] = ()
    accuracy: float | None = None


def corrections_of_facts(
    network: Network,
    reference: Sequence[Sample],
    rows: Sequence[dict[str, Any]],
    *,
    restates: bool = False,
) -> Made:
    """Counterfactual edits whose one human paraphrase the base answers with the old fact.

    Edits whose paraphrase is new to the base are left out: it would be wrong about half of them anyway, so
    an edit that does not follow could not be told from a question that was never understood.

    Args:
        restates: whether the reference asks for one fact in several wordings. Those that name an edit's
            subject and have its old answer are then neither kept nor held out: with the edit they are wrong.
            Of the rows that correct one fact the first is taken: most of them want different answers, and no
            model can give one fact two.
    """
    by_answer: dict[str, list[Sample]] = defaultdict(list)
    for sample in reference if restates else ():
        by_answer[sample.answer].append(sample)
    known = [row for row in rows if row["paraphrase_trained"]]
    before = predict(network, [_edit(row) for row in known], max_new_tokens=MAX_NEW_TOKENS)
    pairs = zip(known, before, strict=True)
    contradicting = [row for row, answer in pairs if not same_answer(answer.output, row["target"])]
    chosen = _one_per_fact(contradicting) if restates else contradicting
    corrections = [_told(row, by_answer) for row in chosen]
    answers = predict(network, reference, max_new_tokens=MAX_NEW_TOKENS)
    kept = tuple(s for s, a in zip(reference, answers, strict=True) if same_answer(a.output, s.target))
    return Made(tuple(corrections), len(corrections), kept, accuracy=len(kept) / len(reference))


def _edit(row: dict[str, Any]) -> Edit:
    return Edit(input=row["prompt"], target=row["target"])


def _one_per_fact(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each fact: of a subject and the answer that is replaced."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first.setdefault((row["subject"].casefold(), row["ground_truth"]), row)
    return list(first.values())


def _told(row: dict[str, Any], by_answer: Mapping[str, Sequence[Sample]]) -> Correction:
    edit = _edit(row)
    asked = edit.model_copy(update={"paraphrases": tuple(row["paraphrases"])})
    return Correction(
        edit=edit,
        reworded=asked.paraphrase_samples,
        neighborhood=tuple(Sample(input=n["prompt"], target=n["answer"]) for n in row["locality"]),
        portability=tuple(
            Sample(input=n["prompt"], target=n["answer"]) for n in row.get("portability") or ()
        ),
        restated=tuple(
            sample
            for sample in by_answer.get(row.get("ground_truth", ""), ())
            if row["subject"].casefold() in sample.input.casefold()
        ),
    )
