"""The facts to edit: rows 1 to 500 of zsre, counterfact, and wikibigedit in `data/facts_3k`.

The targets of zsre and counterfact contradict what is known, and the targets of wikibigedit are true. Only
rows that the base does not answer with the target are edits. Must not know models, methods, or how questions
are written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from benchmarks.chat_quality.scoring import contains, normalized
from benchmarks.shared_data import shared_rows

SOURCES = ("zsre", "counterfact", "wikibigedit")
ROWS = 500  # of each file: the others belong to the training of the scope judge
ASKED_TOGETHER = 40  # rows that the base answers at a time


@dataclass(frozen=True)
class Fact:
    """One row. A question of counterfact is a statement to complete."""

    source: str
    subject: str
    question: str
    target: str
    known: tuple[str, ...]  # answers that are known to be true; empty for wikibigedit
    unseen_paraphrase: str
    neighbor: str | None  # same relation, other subject; zsre has none
    neighbor_answer: str | None

    @property
    def frame(self) -> str:
        """The question with a gap in place of the subject."""
        return self.question.replace(self.subject, "{}")

    @property
    def is_statement(self) -> bool:
        return not self.question.endswith("?")


@dataclass(frozen=True)
class Pool:
    """The facts that are edited, in order, and rows with other subjects, which are never edited."""

    edits: tuple[Fact, ...]
    others: tuple[Fact, ...]


def facts(source: str) -> list[Fact]:
    """The rows of one file that a job may use."""
    return [_fact(source, row) for row in shared_rows(f"facts_3k/{source}")[:ROWS]]


def edit_pool(size: int, answers: Callable[[Sequence[str]], list[str]], seed: int = 0) -> Pool:
    """`size` facts, the three sources in turn, each about another subject.

    Args:
        answers: what the base answers to questions.
    """
    everything = {source: facts(source) for source in SOURCES}
    share = -(-size // len(SOURCES))
    chosen: list[list[Fact]] = []
    seen: set[str] = set()
    for rows in everything.values():
        usable = [fact for fact in rows if _usable(fact)]
        random.Random(seed).shuffle(usable)
        chosen.append(_first_with_new_subjects(_wrong(usable, answers), share, seen))
    turns = chain.from_iterable(zip_longest(*chosen))
    edits = tuple(fact for fact in turns if fact is not None)[:size]
    names = {normalized(fact.subject) for fact in edits}
    others = [fact for fact in chain(*everything.values()) if normalized(fact.subject) not in names]
    return Pool(edits, tuple(fact for fact in others if _usable(fact)))


def _usable(fact: Fact) -> bool:
    """Whether the question names its subject once, and the target is not what is known already."""
    known = {normalized(answer) for answer in fact.known}
    return fact.question.count(fact.subject) == 1 and normalized(fact.target) not in known


def _wrong(rows: Sequence[Fact], answers: Callable[[Sequence[str]], list[str]]) -> Iterator[Fact]:
    """The rows that the base does not answer with the target. Asks only about as many as are needed."""
    for start in range(0, len(rows), ASKED_TOGETHER):
        part = rows[start : start + ASKED_TOGETHER]
        found = answers([fact.question for fact in part])
        yield from (f for f, answer in zip(part, found, strict=True) if not contains(answer, f.target))


def _first_with_new_subjects(rows: Iterator[Fact], num: int, seen: set[str]) -> list[Fact]:
    """The first `num` rows about subjects that are not in `seen`, which they are added to."""
    found: list[Fact] = []
    for fact in rows:
        if len(found) == num:
            break
        if normalized(fact.subject) not in seen:
            seen.add(normalized(fact.subject))
            found.append(fact)
    return found


def _fact(source: str, row: dict[str, object]) -> Fact:
    known = row.get("known", [])
    assert isinstance(known, list)
    return Fact(
        source=source,
        subject=str(row["subject"]),
        question=str(row["input"]),
        target=str(row["target"]),
        known=tuple(known),
        unseen_paraphrase=str(row["unseen_paraphrase"]),
        neighbor=None if row.get("neighbor") is None else str(row["neighbor"]),
        neighbor_answer=None if row.get("neighbor_answer") is None else str(row["neighbor_answer"]),
    )
