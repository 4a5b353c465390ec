"""Counterfactual neighbours: near enough to be mistaken, and never the same question."""

from __future__ import annotations

import random

import pytest

from salem.records import TextInput
from worker.neighbours import neighbours

OTHERS = [TextInput(input="where does Anna live"), TextInput(input="who met Carlos in 1987")]


def test_one_text_of_a_pair_is_exchanged() -> None:
    pair = TextInput(input="a man sleeps", text_pair="he is awake")
    others = [TextInput(input=f"first {n}", text_pair=f"second {n}") for n in range(9)]
    found = neighbours([pair], others, random.Random(0))
    assert len(found) == 2
    assert {text.input == pair.input for text in found} == {True, False}
    assert all((text.input == pair.input) != (text.text_pair == pair.text_pair) for text in found)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("what did Maria write", ["what", "did", "write"]),
        ("the parcel never arrived", ["the", "parcel", "never"]),
    ],
)
def test_what_a_text_is_about_is_exchanged(text: str, kept: list[str]) -> None:
    for seed in range(10):
        (found,) = neighbours([TextInput(input=text)], OTHERS, random.Random(seed))
        words = found.input.split()
        assert len(words) == 4 and found.input != text
        assert [word for word in text.split() if word in words] == kept


def test_no_neighbour_is_one_of_the_texts_and_none_comes_twice() -> None:
    texts = [TextInput(input="where does Anna live"), TextInput(input="where does Carlos live")]
    found = neighbours(texts * 3, [*texts, *OTHERS], random.Random(0))
    assert len({text.content_hash for text in found}) == len(found)
    assert not {text.content_hash for text in found} & {text.content_hash for text in texts}


def test_without_other_texts_there_are_none() -> None:
    assert neighbours(OTHERS, [], random.Random(0)) == []
