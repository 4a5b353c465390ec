"""Checks of reference sets: two rows with the same words need the same target."""

from __future__ import annotations

import pytest

from app.validation.references import check_reference
from app.validation.samples import ReferenceSampleIn

SAME_WORDS = [
    ({"input": "money back"}, {"input": "money back"}),
    ({"input": "money back"}, {"input": " money \n back"}),
    ({"input": "money back", "text_pair": "a b"}, {"input": "money  back", "text_pair": "a\tb"}),
]
OTHER_WORDS = [
    ({"input": "money back"}, {"input": "money", "text_pair": "back"}),
    ({"input": "money back"}, {"input": "moneyback"}),
    ({"input": "polish my shoes"}, {"input": "Polish my shoes"}),
]


def rows(first: dict[str, str], second: dict[str, str], targets: tuple[str, str]) -> list[ReferenceSampleIn]:
    """Two rows with these targets, and an unrelated one between them."""
    between = ReferenceSampleIn(input="log in", target="login")
    return [
        ReferenceSampleIn(**first, target=targets[0]),
        between,
        ReferenceSampleIn(**second, target=targets[1]),
    ]


@pytest.mark.parametrize(("first", "second"), SAME_WORDS)
def test_rows_with_the_same_words_and_different_targets_are_refused(
    first: dict[str, str], second: dict[str, str]
) -> None:
    (found,) = check_reference(rows(first, second, ("refund", "billing")), "/reference")
    assert found.pointer == "/reference/2/target"
    assert found.detail == (
        'the target of this input is "billing" here but "refund" at /reference/0 (only the words count, not '
        "the white space); keep the row with the correct target"
    )


@pytest.mark.parametrize(("first", "second"), SAME_WORDS)
def test_rows_with_the_same_words_and_target_are_accepted(
    first: dict[str, str], second: dict[str, str]
) -> None:
    assert not list(check_reference(rows(first, second, ("refund", "refund"))))


@pytest.mark.parametrize(("first", "second"), OTHER_WORDS)
def test_rows_with_different_words_may_have_different_targets(
    first: dict[str, str], second: dict[str, str]
) -> None:
    assert not list(check_reference(rows(first, second, ("refund", "billing"))))
