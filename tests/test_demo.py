"""The demo's parts that need no training, and the pages that describe the code."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from source_modules import ROOT

from demo.classifier import fingerprint
from demo.desk import load_desk
from demo.run import holds, neighbors, summary, unseen_paraphrase
from demo.service import environment
from demo.show import Screen
from salem.records import Metrics
from worker.recipes.catalog import recipe_classes

OUTCOME = {"edit": 0, "input": "a ticket", "target": "cancel_membership", "before": "x", "correct": True}
INTERVAL = {"value": 1.0, "low": 0.5, "high": 1.0, "count": 4}
RESULT = {
    **dict.fromkeys(("edit_accuracy", "generalization", "drawdown"), INTERVAL),
    "delta_bytes": 10,
    "layer": "block.2",
    "held_out": 4,
    "version": "desk:1",
}


def plain() -> tuple[Screen, io.StringIO]:
    written = io.StringIO()
    return Screen(Console(file=written)), written


def test_the_desk_is_large_enough_for_the_demo() -> None:
    desk = load_desk()
    assert len(desk.intents) >= 12
    assert len(desk.training) + len(desk.reference) >= 1_000
    assert len(desk.policy_edits) + len(desk.tickets) >= 12
    assert all(len(edit.paraphrases) >= 3 for edit in (*desk.policy_edits, *desk.tickets))
    assert {edit.target for edit in (*desk.policy_edits, *desk.tickets)} <= set(desk.intents)


def test_no_edit_of_the_desk_was_in_its_training() -> None:
    desk = load_desk()
    trained = {sample.input for sample in desk.training}
    asked = {text for edit in (*desk.policy_edits, *desk.tickets) for text in (edit.input, *edit.paraphrases)}
    kept = {sample.input for sample in desk.reference}
    assert not trained & kept
    assert not asked & kept
    assert not {text for edit in desk.tickets for text in (edit.input, *edit.paraphrases)} & trained


def test_the_classifier_is_identified_by_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALEM_DEMO_BASE", "some-base")
    desk = load_desk()
    fewer = type(desk)(desk.training[1:], desk.reference, desk.policy_edits, desk.tickets)
    assert fingerprint(desk) == fingerprint(load_desk())
    assert fingerprint(desk) != fingerprint(fewer)
    monkeypatch.setenv("SALEM_DEMO_BASE", "another-base")
    assert fingerprint(load_desk()) != fingerprint(fewer)


def test_neighbors_are_held_out_and_not_edited() -> None:
    assert {sample.target for sample in neighbors(load_desk())} == {"payment_problem"}


def test_the_demo_serves_with_its_own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "BLOB_URL", "SALEM_API_KEY", "SALEM_QUEUE"):
        monkeypatch.setenv(name, "the user's")
    variables = environment(tmp_path / "home", tmp_path / "models")
    assert "the user's" not in variables.values()
    assert variables["SALEM_HOME"] == str(tmp_path / "home")


def test_progress_is_plain_lines_without_a_terminal() -> None:
    screen, written = plain()
    with screen.track("18 edits") as report:
        report("training", 0.2, 30.0)
        report("training", 0.3, 25.0)
        report("done", 1.0)
    assert written.getvalue().splitlines() == ["18 edits: training 20%, 30 s left", "18 edits: done 100%"]


def test_a_terminal_gets_a_live_bar() -> None:
    written = io.StringIO()
    with Screen(Console(file=written, force_terminal=True, width=110)).track("18 edits") as report:
        report("training", 0.5, 30.0)
    assert "18 edits: training" in written.getvalue()
    assert "30 s left" in written.getvalue()


def test_the_edited_layer_is_marked() -> None:
    screen, written = plain()
    screen.saliency([{"layer": f"block.{i}", "score": 3.0 - i, "chosen": i == 1} for i in range(3)])
    marked = [line for line in written.getvalue().splitlines() if "<- edited" in line]
    assert len(marked) == 1
    assert "block.1" in marked[0]


def test_edits_are_shown_with_their_paraphrases() -> None:
    screen, written = plain()
    reworded = [{**OUTCOME, "kind": "adapt", "after": "y", "correct": right} for right in (True, False)]
    screen.edits([{**OUTCOME, "kind": "edit", "after": "cancel_membership"}, *reworded])
    assert re.search(r"a ticket +x +cancel_membership +yes +1/2", written.getvalue())


def test_a_changed_paraphrase_is_sent_to_base_and_version() -> None:
    unseen = {**OUTCOME, "kind": "held_out_paraphrase"}
    same, changed = {**unseen, "after": "x"}, {**unseen, "input": "another", "after": "cancel_membership"}
    assert unseen_paraphrase([same, changed, same]) == "another"
    assert unseen_paraphrase([same]) == "a ticket"


def test_the_last_line_has_the_figures() -> None:
    last = summary(RESULT, 12.347)
    expected = {"edit_accuracy", "generalization", "drawdown", "job_seconds", "delta_bytes", "layer"}
    assert set(last) == expected | {"held_out", "version", "intervals"}
    assert last["job_seconds"] == 12.35 and last["edit_accuracy"] == 1.0
    assert last["intervals"]["edit_accuracy"] == INTERVAL


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [({"edit_accuracy": 0.95}, True), ({"edit_accuracy": 0.94}, False), ({"state": "failed"}, False)],
)
def test_the_demo_succeeds_only_if_the_edits_hold(outcome: dict[str, float], expected: bool) -> None:
    assert holds(outcome) is expected


def rows(page: str) -> dict[str, str]:
    """First column of a page's tables, if it is code -> second column without its quotes."""
    found = re.findall(r"^\| `(\w+)` \| (.+?) \|", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return {name: second.strip("`") for name, second in found}


def test_every_recipe_is_documented() -> None:
    assert set(recipe_classes()) <= set(rows("recipes.md"))


def test_every_figure_is_defined() -> None:
    figures = {name for name in Metrics.model_fields if name.endswith(("accuracy", "tion", "down", "tency"))}
    assert figures | {"job_seconds", "delta_bytes", "held_out"} <= set(rows("metrics.md"))
