"""The questions of the chat benchmark: tables that fit together, and what each kind promises."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.chat_quality.careless import carelessly
from benchmarks.chat_quality.chat import last_question
from benchmarks.chat_quality.edits import chat_edits, open_prompts, paraphrase
from benchmarks.chat_quality.facts import SOURCES, Fact, Pool, edit_pool, facts
from benchmarks.chat_quality.paragraphs import paragraphs
from benchmarks.chat_quality.questions import NEIGHBORS, WANTED, Question, questions
from benchmarks.chat_quality.relations import answer_frames, relation_of, subject_frames, table
from benchmarks.chat_quality.scoring import normalized

SHARED = Path(os.environ.get("SALEM_SHARED", "../shared"))
needs_data = pytest.mark.skipif(
    not (SHARED / "data" / "facts_3k").is_dir(), reason="SALEM_SHARED has no data/facts_3k"
)


def fact(question: str, subject: str, target: str, known: tuple[str, ...] = ()) -> Fact:
    return Fact("zsre", subject, question, target, known, f"Reworded: {question}", None, None)


BIRTH = fact("In which city was Ada Lark born?", "Ada Lark", "Ulm", ("Oslo",))
STATEMENT = fact("Ada Lark plays the instrument", "Ada Lark", "oboe")


def silent(texts: Sequence[str]) -> list[str]:
    """A base that never knows the answer."""
    return ["I do not know." for _ in texts]


@pytest.fixture(scope="module")
def pool() -> Pool:
    return edit_pool(100, silent)


def asked(found: Sequence[Question]) -> list[str]:
    return [last_question(question.conversation) for question in found]


# Tables


def test_every_relation_has_kinds_that_the_frames_know() -> None:
    frames = table("frames")
    for row in table("relations")["relation"]:
        assert row["subject"] in frames["subjects"] and row["answer"] in frames["answers"], row["noun"]
        re.compile("|".join(row["match"]))


def test_there_are_enough_frames_and_prompts() -> None:
    assert sum(len(rows) for rows in table("frames")["subjects"].values()) >= 30
    measured, reference = open_prompts("measured"), open_prompts("reference")
    assert len(set(measured)) == len(measured) == 160
    assert len(set(reference)) == len(reference) == 240
    assert not {normalized(text) for text in measured} & {normalized(text) for text in reference}


@pytest.mark.parametrize(
    ("question", "noun"),
    [
        ("In which city was Ada Lark born?", "birthplace"),
        ("On what date did Ada Lark die?", "date of death"),
        ("Ada Lark plays the instrument", "instrument"),
        ("What sport does Ada Lark play? They play", "sport"),
        ("Which sports team is Ada Lark a member of?", "team"),
        ("Is there anything else to say about Ada Lark?", None),
    ],
)
def test_a_question_has_its_relation(question: str, noun: str | None) -> None:
    assert relation_of(fact(question, "Ada Lark", "x")).noun == noun


def test_questions_about_the_subject_do_not_ask_for_the_edited_fact() -> None:
    frames = subject_frames(BIRTH)
    assert "How tall is {subject}?" in frames
    assert not any("born" in frame or "grow up" in frame for frame in frames)


def test_a_fact_of_an_unknown_relation_has_no_hops() -> None:
    unknown = relation_of(fact("What else about Ada Lark?", "Ada Lark", "x"))
    assert all("{target}" in frame for frame in answer_frames(unknown))


# Edits


def test_every_second_edit_has_a_paraphrase_by_rule() -> None:
    edits = chat_edits([BIRTH, STATEMENT, STATEMENT])
    assert [len(edit.paraphrases) for edit in edits] == [1, 0, 1]
    assert BIRTH.question in edits[0].paraphrases[0] and edits[0].paraphrases[0] != BIRTH.question
    assert paraphrase(STATEMENT, 0) == "Complete this sentence: Ada Lark plays the instrument"


def test_careless_typing_is_lower_case_with_two_wrong_words() -> None:
    text = "In which historic county is Crailing Parish Church located?"
    typed = carelessly(text, random.Random(0))
    pairs = list(zip(text.lower().split(), typed.split(), strict=True))
    assert typed == typed.lower()
    assert 1 <= sum(before != after for before, after in pairs) <= 2
    assert carelessly(text, random.Random(0)) == typed


# Data


@needs_data
def test_edits_come_from_the_three_sources_about_equally(pool: Pool) -> None:
    sources = [fact.source for fact in pool.edits]
    assert [sources.count(name) for name in SOURCES] == [34, 33, 33]
    assert len({fact.subject for fact in pool.edits}) == 100
    assert not {fact.subject for fact in pool.edits} & {fact.subject for fact in pool.others}


@needs_data
def test_facts_that_the_base_answers_with_the_target_are_no_edits() -> None:
    rows = {row.question: row for source in SOURCES for row in facts(source)}
    found = edit_pool(
        12, lambda texts: [f"It is {rows[text].target}." if "a" in text else "?" for text in texts]
    )
    assert len(found.edits) == 12
    assert not any("a" in fact.question for fact in found.edits)


@needs_data
def test_every_edit_gets_a_question_of_every_kind(pool: Pool) -> None:
    found = questions(pool.edits, pool, per_edit=1)
    assert {kind: len(rows) for kind, rows in found.items()} == {
        kind: 50 if kind == "paraphrase" else 100 for kind in (*WANTED, *NEIGHBORS)
    }
    assert all(question.target == pool.edits[question.edit].target for question in found["yes_no"])


@needs_data
def test_neighbors_are_neither_edited_nor_their_paraphrases(pool: Pool) -> None:
    found = questions(pool.edits, pool, per_edit=4)
    edited = {normalized(f.question) for f in pool.edits} | {
        normalized(f.unseen_paraphrase) for f in pool.edits
    }
    for kind in NEIGHBORS:
        assert not {normalized(text) for text in asked(found[kind])} & edited, kind
        assert not [text for text in asked(found[kind]) if re.search(r"[{}]", text)], kind


@needs_data
def test_kinds_hold_what_they_promise(pool: Pool) -> None:
    found = questions(pool.edits, pool, per_edit=2)
    for question in found["same_relation"]:
        assert pool.edits[question.edit].subject not in last_question(question.conversation)
    for kind in ("second_turn", "other_system_prompt", "edit"):
        assert all(
            last_question(question.conversation) == pool.edits[question.edit].question
            for question in found[kind]
        )
    assert all(question.conversation[0].role == "system" for question in found["other_system_prompt"])
    assert all(len(question.conversation) == 3 for question in found["second_turn"])
    assert all(question.target in last_question(question.conversation) for question in found["yes_no"])


@needs_data
def test_a_fact_has_the_same_questions_in_every_job(pool: Pool) -> None:
    alone = questions(pool.edits[30:40], pool, per_edit=1)
    together = questions(pool.edits, pool, per_edit=1)
    assert asked(alone["two_hops"]) == asked(together["two_hops"])[30:40]


@needs_data
def test_paragraphs_are_spaced_as_people_write() -> None:
    found = paragraphs()
    assert len(found) >= 20
    assert not [text for text in found if re.search(r" [,.;)]|@|<unk>|  ", text)]
