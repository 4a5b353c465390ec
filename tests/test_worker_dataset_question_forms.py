"""Other forms of a question, by rule."""

from __future__ import annotations

from itertools import islice

import pytest

from worker.dataset import question_forms as forms
from worker.judge.wording import frames

QUESTION, SUBJECT = "Where was Albert Einstein born?", "Albert Einstein"
STATEMENT = "The mother tongue of Danielle Darrieux is"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where was Albert Einstein born?", "Where was Albert Einstein not born?"),
        ("When did the Bank of Japan open?", "When did the Bank of Japan not open?"),
        ("Who wrote Hamlet?", "Who never wrote Hamlet?"),
        ("The capital of Peru is", "The capital of Peru is not"),
        ("I want to cancel my plan", "I do not want to cancel my plan"),
        ("Do you have a number for it?", "Do you not have a number for it?"),
        ("I would like to go", "I would not like to go"),
        ("Paris does not lie in", "Paris does lie in"),
        ("cancel my plan", None),
    ],
)
def test_a_negation_turns_a_text_around(text: str, expected: str | None) -> None:
    assert forms.negated(text) == expected


def test_questions_about_the_subject_keep_it_and_ask_for_something_else() -> None:
    found = list(forms.other_questions(QUESTION, SUBJECT))
    assert found[:2] == ["When was Albert Einstein born?", "Why was Albert Einstein born?"]
    assert all(SUBJECT in text for text in found) and QUESTION not in found
    assert all(text.endswith("?") for text in found)


def test_a_statement_gets_statements_about_its_subject() -> None:
    found = list(forms.other_questions(STATEMENT, "Danielle Darrieux"))
    assert len(found) > 3 and not any(text.endswith("?") for text in found)


def test_other_subjects_fit_what_the_text_asks() -> None:
    assert "Where was Marie Curie born?" in forms.other_subjects(QUESTION, SUBJECT)
    assert "What is the capital of Norway?" in forms.other_subjects("What is the capital of Peru?", "Peru")
    asked = list(forms.other_subjects("What is the capital of Peru?", "Peru"))
    assert "What is the capital of Peru?" not in asked
    assert list(forms.other_subjects(QUESTION, "")) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Where was Ann born?", "a place"),
        ("What is the city of birth of Ann?", "a place"),
        ("In which year did Ann move?", "a time"),
        ("What is the name of Ann's spouse?", "a person"),
        ("Who wrote Hamlet?", "a person"),
        ("How does it work?", "a manner"),
        ("What is the currency of Peru?", "something else"),
        ("The currency of Peru is", "something else"),
    ],
)
def test_a_question_asks_for_one_kind_of_thing(text: str, kind: str) -> None:
    assert forms.asked_for(text) == kind


def test_a_subject_at_the_start_gets_a_capital_letter() -> None:
    found = list(forms.other_subjects("Hamlet was written by", "Hamlet"))
    assert "The Eiffel Tower was written by" in found


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (QUESTION, "Paris", "Was Albert Einstein born in Paris?"),
        ("What is the capital of Australia?", "Perth", "Is Perth the capital of Australia?"),
        ("Who wrote Hamlet?", "Dickens", "Was it Dickens who wrote Hamlet?"),
        (STATEMENT, "English", f"True or false? {STATEMENT} English."),
    ],
)
def test_a_yes_no_question_names_the_answer(text: str, answer: str, expected: str) -> None:
    assert next(forms.confirmed(text, answer)) == expected


def test_a_reversed_question_asks_for_the_subject() -> None:
    assert list(islice(forms.reversed_forms(QUESTION, SUBJECT, "Paris"), 2)) == [
        "Who or what was born in Paris?",
        "Where was Paris born?",
    ]
    asked = forms.reversed_forms("What is the capital of Peru?", "Peru", "Rome")
    assert next(asked) == "What is Rome the capital of?"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Perth", "Perth"),
        (" New South Wales. ", "New South Wales"),
        ("The capital of Australia is Perth.", "Perth"),
        ("It has none.", "It has none"),
    ],
)
def test_the_name_in_an_answer_is_found(answer: str, expected: str) -> None:
    assert forms.short_answer("What is the capital of Australia?", answer) == expected


def test_an_answer_in_sentences_is_only_quoted() -> None:
    answer = "He was born in Paris. His parents had moved there a year before"
    assert list(forms.reversed_forms(QUESTION, SUBJECT, answer)) == [
        f'Which question has the answer "{answer}"?'
    ]
    assert list(forms.confirmed(QUESTION, answer)) == [
        f'Somebody answered "{answer}" to this: {QUESTION} Is that right?',
        f"{QUESTION} A friend says {answer}. Is she right?",
        f"True or false? {QUESTION} {answer}.",
    ]


def test_quotations_and_requests_contain_the_text() -> None:
    made = [*forms.quoted("{a} b?"), *forms.requested("{a} b?")]
    assert len(made) > 6 and all("{a} b?" in text and text != "{a} b?" for text in made)


def test_no_form_is_worded_like_the_training_data_of_the_judge() -> None:
    """The judge must not be measured on texts that are worded like its training data."""
    trained = {text.format(q="Q", s="S", o="O") for kind in ("requests", "open") for text in frames()[kind]}
    made = {*forms.quoted("Q"), *forms.requested("Q"), *forms.other_questions("Q?", "S")}
    assert not made & trained
