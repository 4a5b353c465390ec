"""The checks of neighbors and subjects: every problem, at its place, with a remedy."""

from __future__ import annotations

import pytest
from test_app_validation_edits import LIMITS, READER, chosen, hosted

from app.validation.editors import check_corpus
from app.validation.edits import check_edit_request
from app.validation.neighbors import MOST_NEIGHBORS
from app.validation.samples import EditIn
from salem.records import EditorOptions, GivenNeighbor, Task


def check(*edits: dict[str, object], task: Task = Task.SEQUENCE_CLASSIFICATION) -> dict[str, str]:
    found = check_edit_request(
        hosted(task),
        [EditIn.model_validate({"input": "money back", "target": "refund"} | edit) for edit in edits],
        None,
        options=chosen(),
        limits=LIMITS,
        reader=READER,
    )
    return {problem.pointer: problem.detail for problem in found}


def test_neighbors_are_texts_or_objects_with_an_answer() -> None:
    neighbors = ["my money", {"input": "no money", "target": "login"}, {"input": "a", "text_pair": "b"}]
    assert check({"neighbors": neighbors, "subject": "money"}) == {}
    edit = EditIn(input="a", text_pair="p", target="b", neighbors=neighbors, subject="a").checked()
    assert edit.neighbors == (
        GivenNeighbor(input="my money", text_pair="p"),
        GivenNeighbor(input="no money", text_pair="p", target="login"),
        GivenNeighbor(input="a", text_pair="b"),
    )
    assert edit.subject == "a"


@pytest.mark.parametrize(
    ("neighbor", "pointer", "detail"),
    [
        (" ", "", "the neighbor is empty"),
        ("my  money please", "", "is also the text at /edits/0/paraphrases/0"),
        ("money  back", "", "is also the text at /edits/0/input"),
        ("other edit", "", "is also the text at /edits/1/input"),
        ({"input": "a", "text_pair": "\x00"}, "/text_pair", "contains a NUL character"),
        ({"input": "a", "target": "refnud"}, "/target", 'did you mean "refund"?'),
        ({"input": "a", "target": "refund"}, "/target", "send it in `paraphrases` if the edit should"),
        ("one two three four five six seven", "", "7 tokens, but intents takes 6"),
    ],
)
def test_a_bad_neighbor_is_named_with_a_remedy(neighbor: object, pointer: str, detail: str) -> None:
    first = {"paraphrases": ["my money please"], "neighbors": ["fine", neighbor]}
    found = check(first, {"input": "other edit"})
    assert list(found) == [f"/edits/0/neighbors/1{pointer}"]
    assert detail in found[f"/edits/0/neighbors/1{pointer}"]


def test_a_neighbor_may_belong_to_two_edits_but_not_twice_to_one() -> None:
    found = check({"neighbors": ["a b", "a  b"]}, {"input": "other", "neighbors": ["a b"]})
    assert found == {"/edits/0/neighbors/1": '"a b" is already at /edits/0/neighbors/0; leave it out'}


def test_an_edit_has_a_limited_number_of_neighbors() -> None:
    many = [f"text {number}" for number in range(MOST_NEIGHBORS + 1)]
    assert check({"neighbors": many}) == {
        "/edits/0/neighbors": f"{MOST_NEIGHBORS + 1} neighbors, but the limit is {MOST_NEIGHBORS}; "
        "leave some out"
    }
    assert check({"neighbors": many[1:]}) == {}


@pytest.mark.parametrize(
    ("subject", "detail"),
    [
        ("loan", '"loan" is not a part of "money back"; copy it from the text'),
        ("Money", "spell it as the text does"),
        ("", "the subject is empty"),
    ],
)
def test_a_subject_is_a_part_of_the_text(subject: str, detail: str) -> None:
    found = check({}, {"subject": subject, "input": "money back", "paraphrases": []})
    assert detail in found["/edits/1/subject"]


def test_any_text_is_an_answer_of_a_neighbor_of_a_model_that_generates() -> None:
    neighbor = {"input": "a", "target": "any text"}
    assert check({"neighbors": [neighbor]}, task=Task.TEXT2TEXT_GENERATION) == {}


def test_the_corpus_of_an_editor_has_no_neighbors() -> None:
    edits = [EditIn(input="a", target="refund", neighbors=["b"])]
    found = check_corpus(
        hosted(),
        edits,
        None,
        options=EditorOptions(),
        max_edits=100,
        reader=READER,
    )
    assert "send them with POST /edits" in {each.pointer: each.detail for each in found}["/edits/0/neighbors"]
