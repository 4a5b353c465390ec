"""The chat benchmark's counting: when an answer counts, worst cases, units, and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chat_quality.figures import figures, pooled, rows_of
from benchmarks.chat_quality.questions import NEIGHBORS, WANTED
from benchmarks.chat_quality.report import page
from benchmarks.chat_quality.scoring import Counts, contains, count, exact, normalized, takes_over
from benchmarks.chat_quality.unit_run import OPEN
from benchmarks.chat_quality.units import PROTOCOL, Plan, Row, Unit
from benchmarks.quality.results import ResultFile

KINDS = (*WANTED, *NEIGHBORS, OPEN)


def row(num_edits: int, draw: int, counts: Counts, *, per_edit: int = 1, label: str = "") -> Row:
    unit = Unit("edits", "salem", label, num_edits, draw, per_edit)
    return {**unit.fields, "counts": {kind: vars(counts) for kind in KINDS}, "job_s": 10.0 + draw}


# Scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The St. Louis Cardinals!", "st louis cardinals"),
        ("  an  Apple\n", "apple"),
        ("Ağaçgeçit: a mahalle", "ağaçgeçit mahalle"),
        ("The The", "the the"),
    ],
)
def test_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("answer", "target", "is_exact", "is_contained"),
    [
        ("Ulm", "Ulm", True, True),
        ("the Ulm.", "ulm", True, True),
        ("She was born in Ulm, Germany.", "Ulm", False, True),
        ("She was born in Ulmstadt.", "Ulm", False, False),
        ("", "Ulm", False, False),
    ],
)
def test_exact_match_and_containment(answer: str, target: str, is_exact: bool, is_contained: bool) -> None:
    assert exact(answer, target) is is_exact
    assert contains(answer, target) is is_contained


@pytest.mark.parametrize(
    ("base", "after", "expected"),
    [
        ("In Oslo.", "She was born in Ulm.", True),
        ("In Ulm.", "She was born in Ulm.", False),
        ("Yes, in Ulm.", "Ulm", True),
        ("Ulm.", "Ulm", False),
        ("In Oslo.", "In Oslo.", False),
    ],
)
def test_a_target_that_the_base_says_anyway_is_not_taken_over_unless_it_is_all(
    base: str, after: str, expected: bool
) -> None:
    assert takes_over(base, after, "Ulm") is expected


def test_answers_are_counted() -> None:
    found = count(["Ulm", "Ulm", "Ulm"], ["In Ulm.", "In Oslo.", "In Oslo."], ["In Ulm!", "Ulm", "In Oslo."])
    assert found == Counts(asked=3, contain=2, exact=1, taken_over=1, changed=2)


def test_prompts_without_a_target_only_change() -> None:
    assert count([None, None], ["a", "b"], ["a", "c"]) == Counts(asked=2, changed=1)


# Figures


def test_draws_are_added_up_and_sizes_are_not() -> None:
    half = Counts(asked=10, contain=5, exact=1, taken_over=2, changed=4)
    found = pooled([row(10, 0, half), row(10, 1, half), row(100, 0, half)])
    assert found[10]["edit"] == Counts(20, 10, 2, 4, 8)
    assert found[100]["edit"] == half


def test_the_worst_size_counts() -> None:
    good = Counts(asked=10, contain=10, exact=9, taken_over=0, changed=0)
    bad = Counts(asked=10, contain=6, exact=5, taken_over=2, changed=4)
    found = figures([row(10, 0, good), row(10, 1, good), row(100, 0, bad)])
    assert (found["edit_accuracy"], found["edit_accuracy_exact"]) == (0.6, 0.5)
    assert (found["same_subject"], found["same_subject_changed"]) == (0.2, 0.4)
    assert found[OPEN] == 0.4
    assert (found["job_10_s"], found["job_100_s"]) == (11.0, 10.0)
    assert found["chain_holds"] is None and found["small_reference_fired"] is None


def test_chains_and_small_reference_sets_are_figures() -> None:
    chain = {**Unit("chain", "salem", "", 30).fields, "asked": 30, "contain": 24, "exact": 20}
    small = {**Unit("small_reference", "salem", "", 1).fields, "fired": {"10": 70, "30": 9, "100": 3}}
    found = figures([chain, small])
    assert found["chain_holds"] == 0.8 and found["small_reference_fired"] == 70
    assert found["generalization"] is None


def test_rows_of_other_labels_or_numbers_of_questions_do_not_mix() -> None:
    rows = [row(10, 0, Counts()), row(10, 0, Counts(), label="before"), row(10, 0, Counts(), per_edit=4)]
    assert rows_of(rows, "salem", "") == [rows[2]]
    assert rows_of(rows, "salem", "before") == [rows[1]]


# Units


def test_a_plan_has_draws_of_small_jobs_and_one_large_job() -> None:
    units = Plan(["salem", "retrieval"], "", [10, 100], draws=3, per_edit=4).units()
    mine = [unit for unit in units if unit.method == "salem"]
    assert [(u.kind, u.num_edits, u.draw, u.per_edit) for u in mine] == [
        ("edits", 10, 0, 4),
        ("edits", 10, 1, 4),
        ("edits", 10, 2, 4),
        ("edits", 100, 0, 1),
        ("chain", 30, 0, 0),
        ("small_reference", 1, 0, 0),
    ]
    assert "small_reference" not in {unit.kind for unit in units if unit.method == "retrieval"}


def test_a_finished_unit_is_recognized_in_the_file(tmp_path: Path) -> None:
    results = ResultFile(tmp_path / "rows.json")
    results.add(row(10, 0, Counts()))
    assert Unit("edits", "salem", "", 10, 0, 1).is_measured(results.rows())
    assert not Unit("edits", "salem", "", 10, 1, 1).is_measured(results.rows())
    assert results.rows()[0]["protocol"] == PROTOCOL


def test_the_page_shows_shares_with_their_counts() -> None:
    found = page([row(10, 0, Counts(asked=10, contain=5, exact=1, taken_over=2, changed=4))])
    assert "## 10 edits" in found and "| edit | 0.50 (5/10) / 0.10 |" in found
    assert "| reversed | 0.20 (2/10) / 0.40 |" in found
    assert "| job of 10 edits, s | 10 |" in found
