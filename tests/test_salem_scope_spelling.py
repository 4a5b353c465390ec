"""A mistyped word counts as the key's word that was meant; other words stay as they are."""

import pytest

from salem.scope.spelling import Spelling

KEYS = ("Who is the owner of Rhyl railway station?", "Where was Jaden Schwartz born?", "Jansen and Hansen")
KNOWN = {"who", "is", "the", "owner", "station", "born", "nation", "salt"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("who is the owner of ryl railway syation?", "who is the owner of rhyl railway station?"),
        ("the owner of Rhyll raileay statino", "the owner of rhyl railway station"),
        ("jaden schwattz's age", "jaden schwartz's age"),
        ("the nation", "the nation"),  # a word of its own, one letter from "station"
        ("Pansen", "Pansen"),  # one slip from two names
        ("railways and more", "railway and more"),
        ("stn", "stn"),  # too short
        ("2008 RA122", "2008 RA122"),
        ("", ""),
    ],
)
def test_a_word_one_slip_away_is_read_as_the_word_of_a_key(typed: str, meant: str) -> None:
    assert Spelling(KEYS, KNOWN.__contains__).corrected(typed) == meant


def test_two_slips_in_one_word_are_too_many() -> None:
    assert Spelling(KEYS, KNOWN.__contains__).corrected("schwrattz") == "schwrattz"
