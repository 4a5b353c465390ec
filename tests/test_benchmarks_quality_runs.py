"""The runner of the quality benchmark: resumable, in order, with the settings that the search chose."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baselines.interface import Editing, Method
from benchmarks.command import Progress
from benchmarks.quality import runs
from benchmarks.quality.jobs import Sizes
from benchmarks.quality.results import PROTOCOL, ResultFile, claimed
from benchmarks.quality.runs import Run, planned_time, run_units
from benchmarks.quality.unit_run import Work
from benchmarks.quality.units import plan, units_of


def edit_nothing(editing: Editing) -> Any:
    raise NotImplementedError


STEADY = Method("steady", "rate", (0.1, 0.2, 0.3), 1_000, edit_nothing, "here", True, num_seeds=2)


def some_run(folder: Path, *, seconds: float = 60) -> Run:
    units = plan({"nli": ("a" * 64, 5_000)}, [STEADY], [0, 1], [10, 100])
    return Run(
        units=tuple(units),
        grids={"steady": STEADY.grid},
        results=ResultFile(folder / "rows.json"),
        sizes=Sizes(),
        limit=None,
        until=time.monotonic() + seconds,
        progress=Progress(),
    )


def made_up(work: Work) -> dict[str, Any]:
    """A row for which the highest setting is best; a hundred edits fail."""
    unit = work.unit
    assert unit.setting is not None
    row = {
        "protocol": PROTOCOL, **vars(unit), "edit_accuracy": unit.setting, "drawdown": 0.0,
        "unit_seconds": 3.0,
    }  # fmt: skip
    return {**row, "error": "no luck"} if unit.num_edits == 100 else row


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    works: list[Work] = []

    def run(work: Work) -> dict[str, Any]:
        works.append(work)
        return made_up(work)

    monkeypatch.setattr(runs, "run_apart", run)
    return works


def test_the_search_chooses_the_setting_that_is_measured(taken: list[Work], tmp_path: Path) -> None:
    assert run_units(some_run(tmp_path)) == 2  # a hundred edits, on two seeds
    assert [(w.unit.kind, w.unit.num_edits, w.unit.setting) for w in taken[:5]] == [
        ("search", 10, 0.1),
        ("search", 10, 0.2),
        ("search", 10, 0.3),
        ("measure", 10, 0.3),
        ("measure", 100, 0.3),
    ]
    assert len(taken) == 7


def test_a_second_run_repeats_no_row(taken: list[Work], tmp_path: Path) -> None:
    run_units(some_run(tmp_path))
    run_units(some_run(tmp_path))
    assert len(taken) == 7
    assert len(units_of(ResultFile(tmp_path / "rows.json").rows())) == 7


def test_no_unit_starts_after_the_time_limit(taken: list[Work], tmp_path: Path) -> None:
    run_units(some_run(tmp_path, seconds=-1))
    assert taken == []


def test_a_unit_that_another_process_holds_is_skipped(
    taken: list[Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "WAIT_S", 0.1)
    planned = some_run(tmp_path, seconds=2)
    with claimed(planned.units[0].key, tmp_path):
        run_units(planned)
    # The rest waits for the search, which the other has not finished.
    assert [(w.unit.kind, w.unit.setting) for w in taken] == [("search", 0.2), ("search", 0.3)]


def test_the_plan_multiplies_rows_by_their_seconds(taken: list[Work], tmp_path: Path) -> None:
    planned = some_run(tmp_path)
    assert "7 rows, 0.0 hours on one core; 7 rows have no time yet." in planned_time(planned)
    for unit in planned.units[:3]:
        planned.results.add(made_up(Work(unit, Sizes(), None)))
    first = replace(planned.units[3], setting=0.3)
    planned.results.add(made_up(Work(first, Sizes(), None)))
    text = planned_time(planned)
    assert "| measure | nli | 10 | 1 | 3.0 | 3 |" in text
    assert "| measure | nli | 100 | 2 | unknown | unknown |" in text
