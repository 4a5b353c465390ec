"""A small lexicon of English words that may stand for one another in most requests, whatever these are about.

Each group is one meaning in one grammatical form, so that a sentence stays a sentence. Left out is every word
whose other meanings are common (right, fine, light), and whatever tells things apart that a correction may be
about (city and town, lend and borrow). Knows words only.
"""

from __future__ import annotations

from collections.abc import Mapping

_GROUPS = (
    "buy purchase",
    "bought purchased",
    "buying purchasing",
    "begin start",
    "began started",
    "beginning starting",
    "big large",
    "bigger larger",
    "little small",
    "quick fast",
    "quickly rapidly",
    "help assist",
    "helped assisted",
    "need require",
    "needs requires",
    "needed required",
    "show display",
    "shows displays",
    "fix repair",
    "fixed repaired",
    "broken damaged",
    "wrong incorrect",
    "mistake error",
    "mistakes errors",
    "problem issue",
    "problems issues",
    "reply answer",
    "child kid",
    "children kids",
    "movie film",
    "movies films",
    "picture image",
    "pictures images",
    "phone telephone",
    "job occupation",
    "author writer",
    "company firm",
    "companies firms",
    "father dad",
    "located situated",
    "build construct",
    "built constructed",
    "often frequently",
    "maybe perhaps",
    "almost nearly",
    "happy glad",
    "sad unhappy",
    "cheap inexpensive",
    "expensive costly",
    "shop store",
    "choose select",
    "chose selected",
    "chosen selected",
    "allow permit",
    "allowed permitted",
    "allows permits",
    "package parcel",
    "packages parcels",
    "ill sick",
    "rich wealthy",
    "smart clever",
    "entire whole",
    "talk speak",
    "talking speaking",
    "talks speaks",
    "happen occur",
    "happened occurred",
    "correct accurate",
    "try attempt",
    "tried attempted",
    "trying attempting",
    "verify confirm",
    "verified confirmed",
    "currently presently",
    "immediately instantly",
    "entirely completely",
    "famous renowned",
)


def _lexicon() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for group in map(str.split, _GROUPS):
        for word in group:
            others = (other for other in group if other != word)
            found[word] = tuple(dict.fromkeys((*found.get(word, ()), *others)))
    return found


SYNONYMS = _lexicon()
