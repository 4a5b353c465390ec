"""What a text is about: names, what paraphrases share, rare words."""

from __future__ import annotations

import pytest

from worker.dataset.subjects import contains, exchange, find_subject


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Where was Albert Einstein born?", "Albert Einstein"),
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("Danielle Darrieux's mother tongue is", "Danielle Darrieux"),
        ("The Lord of the Rings was written by", "Lord of the Rings"),
        ("When did the Battle of Hastings in 1066 take place?", "Battle of Hastings"),
        ("Who is the CFO of Nokia?", "Nokia"),
        ("In which year did Apollo 11 land?", "Apollo 11"),
        ("What is Rome's largest square?", "Rome"),
        ("France has what capital?", "France"),
        ("Who directed Suzanne's Career?", "Suzanne's Career"),
        ("Who built Eugene A. Gilmore House?", "Eugene A. Gilmore House"),
        ("Asclepiades of Bithynia specializes in", "Asclepiades of Bithynia"),
        ("Techint, that was formed in", "Techint"),
        ("We met yesterday. Where is Oslo?", "Oslo"),
        ("", ""),
        ("who are you?", ""),
    ],
)
def test_a_name_is_the_subject(text: str, subject: str) -> None:
    assert find_subject(text) == subject


def test_of_two_names_the_subject_is_the_one_in_the_paraphrases() -> None:
    text = "Did Tom Hanks win an Oscar for Philadelphia?"
    assert (
        find_subject(text, ["Philadelphia won which actor an Oscar?", "about Philadelphia"]) == "Philadelphia"
    )


def test_without_names_the_subject_is_what_the_paraphrases_share() -> None:
    assert find_subject("who wrote war and peace", ["war and peace was written by whom?"]) == "war and peace"
    assert find_subject("cancel my gym membership", ["end my membership"]) == "membership"


def test_without_names_and_paraphrases_the_subject_is_the_rarest_word() -> None:
    counts = {"card": 40, "stolen": 2, "yesterday": 9}
    assert find_subject("my card was stolen yesterday", (), counts) == "stolen"
    assert find_subject("what is the capital of france") == "france"


def test_a_subject_is_found_and_exchanged_as_whole_words() -> None:
    assert contains("is ROME large?", "Rome") and not contains("Romeo sings", "Rome")
    assert exchange("Rome and Romeo", "Rome", r"\1 {x}") == r"\1 {x} and Romeo"
