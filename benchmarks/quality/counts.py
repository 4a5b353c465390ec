"""What a row keeps of its outcomes: counts, which are all that the bootstrap needs.

The bootstrap draws samples with replacement, so the order of samples does not matter: equal samples are
counted.

    edits, neighbors, portability   [right, all]
    paraphrases                     [[right, all, edits], ...]: edits with that many paraphrases right
    pass_samples                    [lost, all] held-out pass samples; absent on running text
    nll_rises                       running text only, {"tokens of a passage": [first, step, step, ...]}:
                                    sorted rises of the negative log-likelihood, in thousandths of a nat,
                                    each as the step from the one before

Does not know models, methods, or files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from benchmarks.quality.measures import Outcomes
from benchmarks.quality.resampling import Values

Counts = Mapping[str, Any]
NATS = 1_000  # a rise is kept as an integer, in thousandths of a nat


def counts(outcomes: Outcomes, *, perplexity: bool) -> dict[str, Any]:
    """The counts of a row; what was not asked is left out."""
    groups = Counter((sum(hits), len(hits)) for hits in outcomes.paraphrases if hits)
    found: dict[str, Any] = {
        "edits": _right_of(outcomes.edits),
        "paraphrases": [[right, of, edits] for (right, of), edits in sorted(groups.items())],
        "neighbors": _right_of(outcomes.neighbors),
        "portability": _right_of(outcomes.portability),
        "pass_samples": [outcomes.kept.count(False), len(outcomes.kept)],
    }
    if perplexity:
        found["nll_rises"] = _packed(
            (old.num_text_tokens, round(NATS * (new.nll - old.nll)))
            for old, new in zip(outcomes.before_forced, outcomes.after_forced, strict=True)
        )
    empty = ([], [0, 0])
    return {name: value for name, value in found.items() if value not in empty}


def shares(rows: Iterable[Counts], name: str) -> Values:
    """`edits`, `neighbors`, or `portability`: 1 for each right sample, 0 for each other -> [n, 1]."""
    found = [row[name] for row in rows if name in row]
    right, of = sum(one[0] for one in found), sum(one[1] for one in found)
    return np.repeat([1.0, 0.0], [right, of - right]).reshape(-1, 1)


def losses(rows: Iterable[Counts]) -> Values:
    """1 for each held-out pass sample that was lost, 0 for each other -> [n, 1]."""
    return shares(rows, "pass_samples")


def paraphrases(rows: Iterable[Counts]) -> Values:
    """For each edit: how many of its held-out paraphrases are right, and how many it has -> [n, 2]."""
    groups = [group for row in rows for group in row.get("paraphrases", ())]
    pairs = np.array([group[:2] for group in groups], dtype=np.float64).reshape(-1, 2)
    return np.repeat(pairs, [group[2] for group in groups], axis=0)


def rises(rows: Iterable[Counts]) -> Values:
    """For each passage: the rise of its negative log-likelihood in nats, and its tokens -> [n, 2]."""
    found = [
        (rise / NATS, int(tokens))
        for row in rows
        for tokens, steps in row["nll_rises"].items()
        for rise in accumulate(steps)
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _packed(passages: Iterable[tuple[int, int]]) -> dict[str, list[int]]:
    by_tokens: dict[int, list[int]] = defaultdict(list)
    for tokens, rise in passages:
        by_tokens[tokens].append(rise)
    return {str(tokens): _steps(sorted(found)) for tokens, found in sorted(by_tokens.items())}


def _steps(values: Sequence[int]) -> list[int]:
    return [values[0], *(after - before for before, after in pairwise(values))]


def _right_of(hits: Sequence[bool]) -> list[int]:
    return [sum(hits), len(hits)]
