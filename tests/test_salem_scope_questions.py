"""The texts that a scope compares: the question, without what stands around it."""

import pytest
from tiny_models import build_network

from salem.models.chat import TurnFinder
from salem.records import TextInput
from salem.scope.questions import View, question_of, split_sentences, views


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Where was Dr. Anna B. Smith born?", ["Where was Dr. Anna B. Smith born?"]),
        ('He asked "Why?" and left. So?', ['He asked "Why?" and left.', "So?"]),
        ("A line\nanother line", ["A line", "another line"]),
        ("T.Love was created in", ["T.Love was created in"]),
        ("日本の首都は。ありがとう。", ["日本の首都は。", "ありがとう。"]),
        ("", []),
    ],
)
def test_sentences_end_at_marks_and_lines_but_not_at_abbreviations(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who is it?", ()),
        ("It rained all day. Who was the king?", ("Who was the king?",)),
        ("Who was the king? Thanks a lot, my friend.", ("Thanks a lot, my friend.", "Who was the king?")),
        ('My teacher said: "It is late. Who was the king?"', ()),
        ("Translate the following. Who was the king?", ()),
        ("How many words are in the next question? Who was the king?", ()),
        ("A long text about trade.\n\nThe capital of Peru is", ("The capital of Peru is",)),
    ],
)
def test_sentences_that_may_be_the_question_are_compared_as_well(
    question: str, expected: tuple[str, ...]
) -> None:
    first, *others = views(question)
    assert first == View(" ".join(question.split()))
    assert {view.text for view in others} == set(expected)


@pytest.mark.parametrize(
    ("question", "context"),
    [
        ("It rained all day. Who was the king?", None),
        (
            "How do I say this in Italian? Who was the king?",
            "How do I say this in Italian? Who was the king?",
        ),
        ("Nice day. Put it into verse. Who was the king?", "Put it into verse. Who was the king?"),
    ],
)
def test_a_sentence_that_may_say_what_to_do_comes_along(question: str, context: str | None) -> None:
    (view,) = [view for view in views(question) if view.text == "Who was the king?"]
    assert view.context == context


def test_the_question_of_a_chat_is_its_last_user_turn_and_of_a_pair_both_texts() -> None:
    network = build_network("bert")
    assert question_of(network, TextInput(input="One", text_pair="Two")) == "One\nTwo"
    network.__dict__["turns"] = TurnFinder("<|user|>", "<|end|>")
    prompt = "<|system|>Be kind.<|end|><|user|>Hello<|end|><|user|> Who is it? <|end|><|assistant|>"
    assert question_of(network, TextInput(input=prompt)) == "Who is it?"
