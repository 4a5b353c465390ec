"""Changes of a text that keep its meaning, and changes that do not, by rule.

`disguise` types the same question as somebody else would; `about` asks for something to be done with it;
`negate` turns it around. Pure functions of text. Must not know models or where texts come from.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_AUXILIARY = re.compile(
    r"\b(is|was|are|were|does|did|do|has|have|can|could|will|would|may|must|should)\b", re.I
)
_FIRST_VERB = re.compile(r"^(Who|What|Which \w+|Which)\s+(\w+)", re.I)


@cache
def frames() -> dict[str, Any]:
    """The frames of `frames.toml`, by kind."""
    return tomllib.loads(Path(__file__).with_name("frames.toml").read_text())


def lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def careless(text: str, rng: random.Random) -> str:
    """Lower case, no punctuation at the end, or a typo or two."""
    if rng.random() < 0.6:
        text = text.lower()
    if rng.random() < 0.6:
        text = text.rstrip("?!. ")
    for _ in range(rng.choice((0, 0, 1, 2))):
        text = _typo(text, rng)
    return text


def _typo(text: str, rng: random.Random) -> str:
    words = [word for word in re.finditer(r"[A-Za-z]{5,}", text)]
    if not words:
        return text
    word = rng.choice(words)
    place = rng.randrange(word.start() + 1, word.end() - 1)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: text[:place] + text[place + 1 :],
        lambda: text[:place] + text[place] + text[place:],
        lambda: text[:place] + text[place + 1] + text[place] + text[place + 2 :],
    )
    change: Callable[[], str] = rng.choice(kinds)
    return change()


def disguise(text: str, rng: random.Random) -> str:
    """The same question as somebody else would type it: framed, after small talk, or carelessly."""
    chance = rng.random()
    if chance < 0.25:
        framed: str = rng.choice(frames()["polite"])
        text = framed.format(q=lower(text) if not framed.startswith("{q}") and rng.random() < 0.5 else text)
    elif chance < 0.4:
        text = " ".join([*rng.sample(frames()["small_talk"], rng.choice((1, 1, 2))), text])
    elif chance < 0.5:
        text = " ".join([*rng.sample(frames()["passages"], rng.choice((1, 1, 2))), text])
    if rng.random() < 0.35:
        text = careless(text, rng)
    return text


def about(text: str, rng: random.Random) -> str:
    """A request about the question instead of the question."""
    request: str = rng.choice(frames()["requests"])
    return request.format(q=text)


def twist(text: str, rng: random.Random) -> str:
    """The question made pointless: its answer would not answer this."""
    frame: str = rng.choice(frames()["twisted"])
    return frame.format(q=lower(text) if rng.random() < 0.5 else text)


def negate(text: str, rng: random.Random) -> str | None:
    """The question turned around by "not" or "never"; None if it has no verb that the rule knows."""
    found = _AUXILIARY.search(text)
    if found:
        word, rest = found[1], text[found.end() :].split(" ")
        if word.lower() in ("is", "was", "are", "were") and rng.random() < 0.5 and len(rest) > 1:
            return text[: found.end()] + " not" + " ".join(rest)
        subject = re.match(
            r"(\s+(?:the\s+)?[A-Z][\w.'-]*(?:\s+[A-Z][\w.'-]*)*)(\s+\w+.*)$", text[found.end() :]
        )
        if subject:
            return text[: found.end()] + subject[1] + " not" + subject[2]
        return text[: found.end()] + " not" + text[found.end() :]
    verb = _FIRST_VERB.match(text)
    if verb:
        return f"{verb[1]} never {verb[2]}" + text[verb.end() :]
    return None
