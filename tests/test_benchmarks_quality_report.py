"""Tables, verdicts, and plots of the quality benchmark, from made-up rows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.bounds import MISSED, best_rival, must_reach, verdict
from benchmarks.quality.plots import draw_balance, draw_sequence
from benchmarks.quality.report import between_markers, draw_plots, pages, summary
from benchmarks.quality.resampling import first, interval
from benchmarks.quality.tables import lines, table
from benchmarks.selection.report import WAYS, selection_report

KEPT = 400


def row(method: str, edits: str, lost: int, *, seed: int = 0, size: int = 10, **more: Any) -> dict[str, Any]:
    counts = {
        "edits": [edits.count("1"), len(edits)],
        "paraphrases": [[1, 2, len(edits)]],
        "neighbors": [3, 4],
        "pass_samples": [lost, KEPT],
    }
    return {
        "kind": "measure", "dataset": "nli", "model": "bert", "method": method, "num_edits": size,
        "seed": seed, "setting": 0.1, "edit_accuracy": edits.count("1") / len(edits), "drawdown": lost / KEPT,
        "cpu_seconds": 2.0, "peak_bytes": 5e8, "delta_bytes": 2_000, "held_out": KEPT,
        "paraphrase_source": "rules",
        "counts": counts, **more,
    }  # fmt: skip


def text_row(method: str, rise: float) -> dict[str, Any]:
    made = row(method, "11", 0, dataset="wikitext")
    steps = [round(10_000 * rise * (0.5 + place / 50)) for place in range(50)]  # thousandths of a nat
    rises = [steps[0], *(after - before for before, after in pairwise(steps))]
    made["counts"] = {"edits": [2, 2], "paraphrases": [[1, 2, 2]], "nll_rises": {"10": rises}}
    return made


def test_seeds_are_pooled_before_the_interval_is_drawn() -> None:
    found = lines([row("salem", "1111", 0), row("salem", "1101", 8, seed=1)])["nli", 10][0]
    assert found.value("edit_accuracy") == pytest.approx(7 / 8)
    assert found.value("drawdown") == pytest.approx(8 / (2 * KEPT))
    assert found.value("generalization") == pytest.approx(0.5)
    assert found.figures["portability"] is None
    drawdown = found.figures["drawdown"]
    assert drawdown is not None and 0 < drawdown.low < drawdown.value < drawdown.high < 0.02


def test_an_interval_agrees_with_the_normal_one_on_many_samples() -> None:
    values = (np.arange(5_000) % 10 == 0).astype(float).reshape(-1, 1)
    low, high = interval(values, first, np.random.default_rng(0))
    half = 1.96 * np.sqrt(0.1 * 0.9 / 5_000)
    assert low == pytest.approx(0.1 - half, abs=0.001)
    assert high == pytest.approx(0.1 + half, abs=0.001)


def test_drawing_kinds_of_samples_equals_drawing_the_samples() -> None:
    values = np.random.default_rng(1).integers(0, 3, size=(200, 1)).astype(float)
    drawn = np.random.default_rng(2).choice(values[:, 0], size=(4_000, 200)).mean(1)
    assert interval(values, first, np.random.default_rng(0)) == pytest.approx(
        np.percentile(drawn, [2.5, 97.5]), abs=0.02
    )


def test_without_losses_the_interval_still_has_a_width() -> None:
    drawdown = lines([row("salem", "1111", 0)])["nli", 10][0].figures["drawdown"]
    assert drawdown is not None
    assert drawdown.value == 0 and 0.005 < drawdown.high < 0.02


def test_drawdown_of_running_text_is_the_rise_of_perplexity() -> None:
    found = lines([text_row("salem", 0.02)])["wikitext", 10][0].figures["drawdown"]
    assert found is not None
    assert found.value == pytest.approx(0.02, abs=0.003)
    assert found.low < found.value < found.high


def test_failed_and_search_rows_are_in_no_table() -> None:
    failed = {**row("lora", "1", 0), "error": "out of memory"}
    searched = {**row("lora", "1", 0), "kind": "search"}
    assert lines([failed, searched]) == {}


def test_the_rival_has_the_least_drawdown_among_those_as_accurate() -> None:
    found = lines(
        [
            row("salem", "1" * 100, 1),
            row("weak", "1" * 97 + "000", 0),
            row("near", "1" * 98 + "00", 9),
            row("ft", "1" * 100, 50),
        ]
    )["nli", 10]
    rival = best_rival(found)
    assert rival is not None and rival.method == "near"


@pytest.mark.parametrize(
    ("edits", "lost", "rival_lost", "missed"),
    [
        ("1" * 100, 2, 8, [False, True, False, False]),
        ("1" * 100, 2, 7, [False, True, False, True]),
        ("1" * 97 + "000", 3, 40, [True, True, True, False]),
    ],
)
def test_each_bound_is_judged_separately(edits: str, lost: int, rival_lost: int, missed: list[bool]) -> None:
    found = lines([row("salem", edits, lost), row("ft", "1" * 100, rival_lost)])
    cells = verdict(found["nli", 10])
    assert [cell.endswith(MISSED) for cell in cells] == missed
    assert cells[3].startswith(f"{rival_lost / 4 / 400:.4f} (ft)")
    text = must_reach(found)
    assert text.startswith(f"{4 - sum(missed)} of 4 bounds hold.") and " | ".join(cells) in text


def test_without_a_rival_as_accurate_there_is_no_bound_to_miss() -> None:
    found = lines([row("salem", "1" * 100, 1), row("ft", "1" * 90 + "0" * 10, 0)])
    assert verdict(found["nli", 10])[3] == "none of 1 edits as well"
    alone = lines([row("salem", "1" * 100, 1)])
    assert verdict(alone["nli", 10])[3] == "no rival is measured yet"
    assert "of 3 bounds hold" in must_reach(alone)
    assert must_reach(lines([row("ft", "1", 0)])) == "No row of salem yet."
    fallen = must_reach(lines([text_row("salem", -0.01)]))
    assert fallen.startswith("2 of 3 bounds hold;"), "a perplexity that falls is judged, too"


@pytest.mark.parametrize(
    ("edits", "lost", "missed"), [("1" * 95 + "0" * 5, 8, 0), ("1" * 50 + "0" * 50, 9, 2)]
)
def test_a_sequence_has_its_own_bounds(edits: str, lost: int, missed: int) -> None:
    rows = [row("salem", "1", 0), row("salem", edits, lost, size=1_000)]
    *_, sequence = must_reach(lines(rows)).split("\n\n")
    assert sequence.startswith("nli, 1,000 edits in sequence: edit accuracy 0.")
    assert sequence.count("**missed**") == missed


def test_each_seed_is_shown_next_to_the_pooled_value() -> None:
    found = lines([row("salem", "1" * 100, 4), row("salem", "1" * 100, 0, seed=1)])
    assert verdict(found["nli", 10])[2] == "0.0050 (0.0100, 0.0000)"


def test_missing_rows_and_what_cannot_be_judged_are_listed() -> None:
    rows = [row("salem", "1" * 100, 1), row("ft", "1" * 90 + "0" * 10, 0), row("ft", "1", 0, size=1)]
    text = must_reach(lines(rows))
    assert text.startswith("2 of 3 bounds hold; 1 cannot be judged")
    assert "Measured for rivals but not for salem yet: nli (edits: 1)." in text


def test_fresh_draws_are_judged_separately() -> None:
    found = lines([row("salem", "1" * 100, 1), row("ft", "1" * 100, 40)])
    fresh = lines([row("salem", "1" * 50 + "0" * 50, 1, seed=3), row("ft", "1" * 100, 40)])
    written = pages([], found, fresh)
    first, second = written["bounds"].split("## The same on fresh draws")
    assert "3 of 4 bounds hold." in first and "| nli | 10 | 1.0000 |" in first
    assert "2 of 4 bounds hold." in second and "| nli | 10 | 0.5000, **missed** |" in second
    assert "| salem | **1.0000**" in written["nli"], "the tables of methods use the other seeds"


def test_the_first_page_names_every_missed_target() -> None:
    rows = [
        row("salem", "1" * 97 + "000", 3, size=100),
        row("ft", "1" * 100, 8, size=100),
        row("grace", "0" * 100, 0, size=100),
        row("salem", "1" * 100, 9, size=1_000),
    ]
    text = summary(lines(rows), {})
    assert "| [nli](results/nli.md) | **salem** | 0.9700 | 0.5000 | 0.0075 | 0.7500 |" in text
    assert [line.split("|")[2].strip() for line in text.splitlines()[4:7]] == ["**salem**", "ft", "grace"]
    assert text.count("\n- nli, 100 edits: ") == 4
    assert "- nli, 100 edits: edit accuracy 0.9700 (at least 0.98)." in text
    assert "- nli, 100 edits: drawdown 0.0075, and a quarter of the best rival's drawdown is 0.0050." in text
    assert (
        "- nli, 1,000 edits in sequence: edit accuracy 1.0000, at least 0.9; drawdown 0.0225, missed" in text
    )


def test_unchanged_perplexity_does_not_get_the_interval_of_a_share() -> None:
    still = text_row("salem", 0.0)
    found = lines([still])["wikitext", 10][0].figures["drawdown"]
    assert found is not None and (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_paraphrases_of_one_edit_are_one_sample_if_all_agree() -> None:
    made = row("salem", "1111", 0)
    made["counts"]["paraphrases"] = [[2, 2, 4]]
    found = lines([made])["nli", 10][0].figures["generalization"]
    edits = lines([made])["nli", 10][0].figures["edit_accuracy"]
    assert found is not None and edits is not None and found.low == edits.low


def test_the_best_of_a_column_is_bold() -> None:
    text = table(lines([row("salem", "1111", 1), row("ft", "1110", 40)])["nli", 10])
    salem, ft = (
        next(line for line in text.splitlines() if line.startswith(f"| {name} ")) for name in ("salem", "ft")
    )
    assert "**1.0000**" in salem and "**0.0025**" in salem
    assert ft.split("|")[2].strip().startswith("0.7500 (")
    assert "| **0.5000** (" in salem and "| **0.5000** (" in ft
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert "**2.0**" not in text and "**2**" not in text, "costs are not compared"


def test_the_least_drawdown_is_taken_among_methods_that_edit() -> None:
    found = lines([row("salem", "1111", 4), row("idle", "0000", 0), row("ft", "1111", 40)])["nli", 10]
    assert "**0.0100**" in table(found) and "**0.0000**" not in table(found)


def test_text_written_by_hand_is_kept() -> None:
    page = "# Results\n\nBy hand.\n"
    first_time = between_markers(page, "one")
    again = between_markers(first_time + "\nAfter.\n", "two")
    assert first_time.startswith("# Results\n\nBy hand.\n")
    assert again.startswith("# Results\n\nBy hand.\n") and again.endswith("\nAfter.\n")
    assert "two" in again and "one" not in again
    assert again.count("benchmark: begin") == again.count("benchmark: end") == 1


def test_the_table_shows_the_regret_of_every_way_to_select(tmp_path: Path) -> None:
    layers = [
        {"path": f"b.{i}", "block": i // 2, "score": 0.1 * i, "saliency": 1.0 / (1 + i)} for i in range(6)
    ]
    ways = {way: {"regret_at_1": 0.125, "hit_at_3": way == "tracing", "seconds": 1.0} for way in WAYS}
    costs = {
        "time_over_plain": {"plain": 1.0, "absolute": 1.25},
        "memory_over_inference": {"absolute": 1.125},
        "tracing_over_selection": 31.0,
    }
    sets = {name: {"layers": layers, "selection": ways, **costs} for name in ("nli", "wikitext")}
    found = {"num_edits": 10, "seed": 0, "sets": sets}
    text = selection_report(found, tmp_path)
    assert "| causal tracing | 0.125 | 0.125 | 2 of 2 |" in text
    assert text.count("0 of 2") == len(WAYS) - 1
    assert "| the best layer's score | 0.500 | 0.500 | |" in text
    assert "| causal tracing, times as long | 31.00 | 31.00 | at least 20 |" in text
    assert "| 1.25 | 1.25 | at most 1.3 |" in text and "| 1.12 | 1.12 | at most 1.2 |" in text
    assert (tmp_path / "selection.svg").stat().st_size > 1_000


def curve(rise: float) -> list[dict[str, Any]]:
    return [
        {
            "num_edits": 100 * n,
            "edit_accuracy": 1 - n * rise,
            "drawdown": n * rise / 4,
        }
        for n in range(1, 11)
    ]


def test_the_report_holds_every_part_and_its_plots(tmp_path: Path) -> None:
    rows = [
        row("salem", "1" * 10, 0),
        row("ft", "1" * 9 + "0", 30),
        text_row("salem", 0.01),
        text_row("ft", 0.2),
    ]
    rows += [
        row("salem", "1" * 50, 3, size=1_000, curve=curve(0.01)),
        row("ft", "0" * 50, 99, size=1_000, curve=curve(0.08)),
    ]
    rows += [
        {**row("salem", "11", 0), "kind": "search"},
        {**row("lora", "1", 0), "error": "RuntimeError: no"},
    ]
    found = lines(rows)
    written = pages(rows, found, {})
    assert set(written) == {"bounds", "nli", "wikitext", "search"}
    assert "## 1,000 edits in sequence" in written["nli"] and "paraphrases: rules" in written["nli"]
    assert "RuntimeError: no" in written["search"]
    text = draw_plots(rows, found, tmp_path / "plots")
    made = {path.name for path in (tmp_path / "plots").iterdir()}
    assert made == {"balance-10.svg", "balance-1000.svg", "sequence.svg"}
    assert all(f"plots/{name}" in text for name in made)


def test_the_same_rows_give_the_same_plot_file(tmp_path: Path) -> None:
    panels = {"nli": lines([row("salem", "1" * 10, 0), row("ft", "1" * 9 + "0", 30)])["nli", 10]}
    for name in ("a.svg", "b.svg"):
        draw_balance(panels, 10, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw_sequence([row("salem", "1", 0, curve=curve(0.01))], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
