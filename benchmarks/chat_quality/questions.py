"""The questions that are asked about each edit, by kind.

`WANTED` kinds ask for the edited fact, so they should get the target. `NEIGHBORS` ask for something else, so
they should keep the base's answer. Everything is drawn with a seed. Must not know models, methods, or how
answers are scored.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.chat_quality.careless import carelessly
from benchmarks.chat_quality.chat import Conversation, Turn, user
from benchmarks.chat_quality.edits import paraphrase
from benchmarks.chat_quality.facts import Fact, Pool
from benchmarks.chat_quality.paragraphs import paragraphs
from benchmarks.chat_quality.relations import (
    Relation,
    answer_frames,
    relation_of,
    subject_frames,
    table,
)
from benchmarks.chat_quality.scoring import normalized

Item = TypeVar("Item")

WANTED = (
    "edit",
    "paraphrase",
    "generalization",
    "second_turn",
    "behind_paragraph",
    "other_system_prompt",
    "careless_typing",
)
NEIGHBORS = ("same_relation", "same_subject", "reversed", "yes_no", "two_hops", "negated")
_FULL_DATE = re.compile(r"\bin (?=\d{1,2} [A-Z][a-z]+ \d{3,4})|\bin (?=[A-Z][a-z]+ \d{1,2}, \d{3,4})")


@dataclass(frozen=True)
class Question:
    """One question, and the target of the edit that it is about."""

    kind: str
    edit: int  # its place in the job
    conversation: Conversation
    target: str


def questions(edits: Sequence[Fact], pool: Pool, per_edit: int, seed: int = 0) -> dict[str, list[Question]]:
    """The questions of every kind. Each edit gets up to `per_edit` of a kind, fewer where none are left."""
    found: dict[str, list[Question]] = {kind: [] for kind in (*WANTED, *NEIGHBORS)}
    passages = paragraphs()
    for place, fact in enumerate(edits):
        rng = random.Random(f"{seed} {fact.subject} {fact.question}")  # the same in every job
        made = {**_wanted(fact, place, rng, passages), **_neighbors(fact, pool, rng)}
        for kind, conversations in made.items():
            distinct = list(dict.fromkeys(conversations))[:per_edit]
            found[kind] += [Question(kind, place, each, fact.target) for each in distinct]
    return found


def _wanted(
    fact: Fact, place: int, rng: random.Random, passages: Sequence[str]
) -> dict[str, list[Conversation]]:
    """The edited question as it is, reworded, and in other surroundings."""
    ask, texts = fact.question, table("surroundings")
    return {
        "edit": [user(ask)],
        "paraphrase": [user(paraphrase(fact, place))] if place % 2 == 0 else [],
        "generalization": [user(fact.unseen_paraphrase)],
        "second_turn": [
            (Turn("user", said), Turn("assistant", answered), Turn("user", ask))
            for said, answered in _shuffled(texts["small_talk"], rng)
        ],
        "behind_paragraph": [user(f"{text}\n\n{ask}") for text in rng.sample(passages, 10)],
        "other_system_prompt": [
            (Turn("system", system), Turn("user", ask)) for system in _shuffled(texts["systems"], rng)
        ],
        "careless_typing": [user(carelessly(ask, rng)) for _ in range(20)],
    }


def _neighbors(fact: Fact, pool: Pool, rng: random.Random) -> dict[str, list[Conversation]]:
    """Questions near the edited one that ask for something else."""
    relation = relation_of(fact)
    fill = _filler(fact, relation)
    frames = {
        "same_subject": subject_frames(fact),
        "reversed": relation.reversed,
        "yes_no": relation.yes_no,
        "two_hops": answer_frames(relation),
        "negated": relation.negated,
    }
    made = {kind: [user(fill(frame)) for frame in _shuffled(rows, rng)] for kind, rows in frames.items()}
    made["same_subject"] = [*_other_rows(fact, pool), *made["same_subject"]]
    made["same_relation"] = _same_relation(fact, relation, pool, rng)
    return made


def _same_relation(fact: Fact, relation: Relation, pool: Pool, rng: random.Random) -> list[Conversation]:
    """The row's own neighbor, then its question about subjects of the same relation that are not edited."""
    own = []
    if fact.neighbor and normalized(fact.neighbor_answer or "") != normalized(fact.target):
        own = [fact.neighbor]
    alike = [other for other in pool.others if relation_of(other) == relation and _may_replace(other, fact)]
    same_frame = [other for other in alike if other.frame == fact.frame]
    rest = [other for other in alike if other.frame != fact.frame]
    others = [*_shuffled(same_frame, rng), *_shuffled(rest, rng)][:20]
    return [user(ask) for ask in (*own, *(fact.question.replace(fact.subject, o.subject) for o in others))]


def _may_replace(other: Fact, fact: Fact) -> bool:
    """Whether the other subject's own answers differ from the target."""
    answers = {normalized(answer) for answer in (*other.known, other.target)}
    return normalized(fact.target) not in answers


def _other_rows(fact: Fact, pool: Pool) -> list[Conversation]:
    """Questions of other rows about the same subject."""
    relation = relation_of(fact)
    rows = [other for other in pool.others if normalized(other.subject) == normalized(fact.subject)]
    return [user(other.question) for other in rows if relation_of(other) != relation]


def _filler(fact: Fact, relation: Relation) -> Callable[[str], str]:
    """Puts the fact into a frame."""
    values = {
        "subject": fact.subject,
        "target": fact.target,
        "a_target": _with_article(fact.target),
        "kind": relation.subject,
        "a_kind": _with_article(relation.subject),
        "noun": relation.noun or "",
        "question": fact.question,
    }

    def fill(frame: str) -> str:
        text = _FULL_DATE.sub("on ", frame.format(**values))
        return text[:1].upper() + text[1:]

    return fill


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _shuffled(rows: Sequence[Item], rng: random.Random) -> list[Item]:
    return rng.sample(rows, len(rows))
