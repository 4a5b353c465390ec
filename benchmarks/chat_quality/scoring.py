"""When an answer counts: normalized exact match and containment, and the counts of each kind of question.

Both compare normalized texts: lower case, without punctuation and articles (as in SQuAD: Rajpurkar et al.,
EMNLP 2016, section 6.1). Answers are generated freely, so containment is the more forgiving of the two: a
chat model answers in sentences. Must not know models, methods, or how questions are written.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass

ARTICLES = frozenset({"a", "an", "the"})


def normalized(text: str) -> str:
    """Lower case, without punctuation, symbols, and articles; single spaces.

    A text that consists of nothing else keeps its articles.
    """
    kept = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text.lower())
    words = kept.split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def exact(answer: str, target: str) -> bool:
    """Whether the answer is the target and nothing else."""
    return normalized(answer) == normalized(target)


def contains(answer: str, target: str) -> bool:
    """Whether the target occurs in the answer as whole words."""
    return f" {normalized(target)} " in f" {normalized(answer)} "


@dataclass(frozen=True)
class Counts:
    """The outcome of one kind of question."""

    asked: int = 0
    contain: int = 0  # answers that contain the target
    exact: int = 0  # answers that are the target and nothing else
    taken_over: int = 0  # answers that are the edit's, see `takes_over`
    changed: int = 0  # answers with another text than the base's

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def takes_over(base: str, after: str, target: str) -> bool:
    """Whether an answer is the edit's: it contains the target and the base's does not, or is nothing else.

    The second case matters where the question names the target: the base often repeats it, but not alone.
    """
    newly_contained = contains(after, target) and not contains(base, target)
    return newly_contained or (exact(after, target) and not exact(base, target))


def count(targets: Sequence[str | None], base: Sequence[str], after: Sequence[str]) -> Counts:
    """Count answers before and after an edit. Questions without a target count only as changed or not."""
    rows = list(zip(targets, base, after, strict=True))
    with_target = [(target, old, new) for target, old, new in rows if target is not None]
    return Counts(
        asked=len(rows),
        contain=sum(contains(new, target) for target, _, new in with_target),
        exact=sum(exact(new, target) for target, _, new in with_target),
        taken_over=sum(takes_over(old, new, target) for target, old, new in with_target),
        changed=sum(old != new for _, old, new in rows),
    )
