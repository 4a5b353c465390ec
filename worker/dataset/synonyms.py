"""A small lexicon of English synonyms that are interchangeable in most requests.

Each group is one meaning in one grammatical form, so a sentence stays grammatical. It leaves out words with
other common meanings (right, fine, issue, show) and words whose difference an edit may be about (city and
town, job and occupation).
"""

from __future__ import annotations

from collections.abc import Mapping

_GROUPS = (
    "bought purchased",
    "buying purchasing",
    "began started",
    "big large",
    "bigger larger",
    "quickly rapidly",
    "helped assisted",
    "needed required",
    "fix repair",
    "fixed repaired",
    "broken damaged",
    "wrong incorrect",
    "mistake error",
    "mistakes errors",
    "child kid",
    "children kids",
    "movie film",
    "movies films",
    "phone telephone",
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
    "choose select",
    "chose selected",
    "chosen selected",
    "allowed permitted",
    "package parcel",
    "packages parcels",
    "ill sick",
    "rich wealthy",
    "talking speaking",
    "happen occur",
    "happened occurred",
    "tried attempted",
    "trying attempting",
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
