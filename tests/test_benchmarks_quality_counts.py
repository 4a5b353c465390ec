"""The counts of a row hold everything that the bootstrap draws from."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.quality.counts import counts, losses, paraphrases, rises, shares
from benchmarks.quality.measures import Forced, Outcomes


def test_counts_can_be_read_back() -> None:
    outcomes = Outcomes(
        edits=[True, False, True],
        paraphrases=[[True, False], [False, False], [], [True, False]],
        kept=[True, False, True, True],
        neighbors=[True],
    )
    kept = json.loads(json.dumps(counts(outcomes, perplexity=False)))
    assert sorted(shares([kept], "edits")[:, 0]) == [0, 1, 1]
    assert sorted(map(tuple, paraphrases([kept]))) == [(0, 2), (1, 2), (1, 2)]
    assert sorted(losses([kept])[:, 0]) == [0, 0, 0, 1]
    assert shares([kept], "neighbors").tolist() == [[1.0]]


def test_rows_are_pooled() -> None:
    rows = [counts(Outcomes(edits=[hit]), perplexity=False) for hit in (True, False, False)]
    assert sorted(shares(rows, "edits")[:, 0]) == [0, 0, 1]
    assert len(paraphrases(rows)) == 0


def test_what_was_not_measured_is_left_out() -> None:
    kept = counts(Outcomes(edits=[True], paraphrases=[[]]), perplexity=False)
    assert kept == {"edits": [1, 1]}
    assert len(shares([kept], "portability")) == 0 and len(losses([kept])) == 0


def test_rises_of_passages_are_kept_to_a_thousandth_of_a_nat() -> None:
    rng = np.random.default_rng(0)
    tokens, before = rng.integers(9, 14, size=40), rng.uniform(20, 40, size=40)
    after = before + rng.normal(size=40)
    outcomes = Outcomes(
        before_forced=[Forced(0, 0, int(t), float(nll)) for t, nll in zip(tokens, before, strict=True)],
        after_forced=[Forced(0, 0, int(t), float(nll)) for t, nll in zip(tokens, after, strict=True)],
    )
    kept = json.loads(json.dumps(counts(outcomes, perplexity=True)))
    expected = sorted(zip(tokens.tolist(), (after - before).tolist(), strict=True))
    found = sorted((t, rise) for rise, t in rises([kept]).tolist())
    np.testing.assert_allclose(found, expected, atol=6e-4)
