"""Corrections of the quality benchmark, and how those of facts are made: against what the model knows.

Does not know where data sets and models are kept, or how a job is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salem.answers import predict, same_answer
from salem.hosting import Network
from salem.records import Edit, Record, Sample

MAX_NEW_TOKENS = 24  # longer than every target: an answer that goes on is a wrong one


class Correction(Record):
    """What may be edited, and what is asked about it afterwards; none of that is seen in training."""

    edit: Edit  # its paraphrases are the adapt samples
    reworded: tuple[Sample, ...] = ()  # the same in other words, held out
    locality: tuple[Sample, ...] = ()  # neighbours whose answers are to stay (Yao et al. 2023)
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
    """
    by_answer: dict[str, list[Sample]] = defaultdict(list)
    for sample in reference if restates else ():
        by_answer[sample.answer].append(sample)
    told = [_told(row, by_answer) for row in rows if row["paraphrase_trained"]]
    before = predict(network, [item.edit for item in told], max_new_tokens=MAX_NEW_TOKENS)
    pairs = zip(told, before, strict=True)
    corrections = [item for item, answer in pairs if not same_answer(answer.output, item.edit.target)]
    answers = predict(network, reference, max_new_tokens=MAX_NEW_TOKENS)
    kept = tuple(s for s, a in zip(reference, answers, strict=True) if same_answer(a.output, s.target))
    return Made(tuple(corrections), len(corrections), kept, accuracy=len(kept) / len(reference))


def _told(row: dict[str, Any], by_answer: Mapping[str, Sequence[Sample]]) -> Correction:
    edit = Edit(input=row["prompt"], target=row["target"])
    asked = edit.model_copy(update={"paraphrases": tuple(row["paraphrases"])})
    return Correction(
        edit=edit,
        reworded=asked.paraphrase_samples,
        locality=tuple(Sample(input=n["prompt"], target=n["answer"]) for n in row["locality"]),
        portability=tuple(
            Sample(input=n["prompt"], target=n["answer"]) for n in row.get("portability") or ()
        ),
        restated=tuple(
            sample
            for sample in by_answer.get(row.get("ground_truth", ""), ())
            if row["subject"].casefold() in sample.input.casefold()
        ),
    )
