"""Chunks hold every text once, share a padded length, and stay when another text changes."""

from __future__ import annotations

import pytest

from salem.models.batching import LENGTH_BUCKET
from salem.records import TextInput
from worker.activations.stable_chunks import CHUNKS_PER_LEAF, stable_chunks

SIZE = 32


def texts(count: int) -> list[TextInput]:
    return [TextInput(input=f"question {number}") for number in range(count)]


def lengths_of(inputs: list[TextInput]) -> list[int]:
    return [3 + int(text.content_hash[-2:], 16) // 4 for text in inputs]  # 3 to 66 tokens


def chunks_of(inputs: list[TextInput]) -> list[tuple[str, ...]]:
    found = stable_chunks(inputs, lengths_of(inputs), SIZE)
    return [tuple(inputs[row].input for row in rows) for rows in found]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 129, 1_000])
def test_every_text_is_in_one_chunk_of_its_padded_length(count: int) -> None:
    inputs = texts(count)
    lengths = lengths_of(inputs)
    chunks = list(stable_chunks(inputs, lengths, SIZE))
    assert sorted(row for rows in chunks for row in rows) == list(range(count))
    widths = [{-(-lengths[row] // LENGTH_BUCKET) for row in rows} for rows in chunks]
    assert all(len(width) == 1 for width in widths) and all(len(rows) <= SIZE for rows in chunks)
    assert [max(width) for width in widths] == sorted((max(width) for width in widths), reverse=True)


def test_chunks_do_not_depend_on_the_order_of_the_texts() -> None:
    inputs = texts(500)
    assert chunks_of(inputs) == chunks_of(inputs[::-1])


@pytest.mark.parametrize("place", range(0, 2_000, 250))
def test_a_changed_text_changes_the_chunks_of_two_leaves_at_most(place: int) -> None:
    inputs = texts(2_000)
    before = set(chunks_of(inputs))
    inputs[place] = TextInput(input="another question")
    after = set(chunks_of(inputs))
    assert 1 <= len(after - before) <= 2 * CHUNKS_PER_LEAF
    assert len(before) < 100


def test_chunks_are_well_filled() -> None:
    inputs = texts(2_000)
    same_length = list(stable_chunks(inputs, [10] * len(inputs), SIZE))
    assert len(same_length) <= 1.4 * len(inputs) / SIZE


def test_equal_texts_fill_chunks_one_after_another() -> None:
    inputs = [TextInput(input="the same")] * (3 * CHUNKS_PER_LEAF * SIZE)
    sizes = [len(rows) for rows in stable_chunks(inputs, [5] * len(inputs), SIZE)]
    assert sizes == [SIZE] * 3 * CHUNKS_PER_LEAF
