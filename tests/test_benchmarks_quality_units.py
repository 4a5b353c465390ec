"""Units of the quality benchmark: order, choice of hyperparameters, claims, and concurrent writers."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baselines.interface import Editing, Method
from benchmarks.quality.methods import METHODS, method
from benchmarks.quality.results import PROTOCOL, RESULTS, ResultFile, claimed, of_newest_weights
from benchmarks.quality.units import (
    FRESH_SEEDS,
    Unit,
    expected_seconds,
    plan,
    resolved,
    takes,
    units_of,
)

UNIT = Unit("measure", "nli", "a" * 64, "steady", 10, 0)


def edit_nothing(editing: Editing) -> Any:
    raise NotImplementedError


STEADY = Method("steady", "rate", (0.1, 0.2, 0.3), 1_000, edit_nothing, "here", True, num_seeds=2)
SMALL = Method("small", "rate", (1.0, 2.0, 3.0), 100, edit_nothing, "here")


def searched(
    setting: float, edit_accuracy: float | None, drawdown: float | None, **more: Any
) -> dict[str, Any]:
    return {
        "kind": "search", "dataset": "nli", "method": "steady", "model_sha256": "a" * 64,
        "protocol": PROTOCOL, "setting": setting,
        "edit_accuracy": edit_accuracy, "drawdown": drawdown, **more,
    }  # fmt: skip


def test_the_plan_starts_with_the_search_and_goes_seed_by_seed() -> None:
    units = plan(
        {"nli": ("a" * 64, 5_000), "fever": ("b" * 64, 60)}, [STEADY, SMALL], [1, 0], [1, 10, 100, 1_000]
    )
    searches = [unit for unit in units if unit.kind == "search"]
    assert units[: len(searches)] == searches
    assert len(searches) == 2 * 2 * 3
    assert {unit.setting for unit in searches if unit.method == "small"} == {1.0, 2.0, 3.0}
    first_seed = [(u.num_edits, u.dataset, u.method) for u in units[len(searches) :] if u.seed == 0]
    assert first_seed == [
        (10, "nli", "steady"), (10, "nli", "small"), (10, "fever", "steady"), (10, "fever", "small"),
        (100, "nli", "steady"), (100, "nli", "small"),
        (1, "nli", "steady"), (1, "nli", "small"), (1, "fever", "steady"), (1, "fever", "small"),
        (1_000, "nli", "steady"),
    ]  # fmt: skip
    assert [u.seed for u in units[len(searches) :]] == sorted(u.seed for u in units[len(searches) :])
    assert {u.method for u in units if u.seed == 1} == {"steady"}, "the other has one seed"


def test_fresh_seeds_are_only_for_the_product() -> None:
    assert method("salem").fresh and [one.name for one in METHODS if one.fresh] == ["salem"]
    units = plan(
        {"nli": ("a" * 64, 5_000)},
        [replace(STEADY, fresh=True), SMALL],
        [0, 1, 2, *FRESH_SEEDS],
        [1, 10, 100, 1_000],
    )
    found = {(u.method, u.num_edits, u.seed) for u in units if u.kind == "measure"}
    wide = {("steady", size, seed) for size in (10, 100) for seed in (0, 1, *FRESH_SEEDS)}
    assert found == wide | {("steady", 1, 0), ("steady", 1_000, 0)} | {
        ("small", size, 0) for size in (1, 10, 100)
    }


def test_a_thousand_edits_need_a_method_that_continues_from_earlier_edits() -> None:
    assert takes(STEADY, 1_000)
    assert not takes(replace(STEADY, sequential=False), 1_000)
    assert not takes(SMALL, 1_000)


@pytest.mark.parametrize(
    ("rows", "setting"),
    [
        ([(0.1, 0.9, 0.0), (0.2, 1.0, 0.02), (0.3, 0.99, 0.01)], 0.3),
        ([(0.1, 0.9, 0.0), (0.2, 1.0, 0.02), (0.3, 0.97, 0.01)], 0.2),
        ([(0.1, None, None), (0.2, 0.5, None), (0.3, 0.5, 0.4)], 0.3),
        ([(0.1, None, None), (0.2, None, None), (0.3, None, None)], 0.2),
        ([(0.1, 1.0, 0.0), (0.2, 1.0, 0.02)], None),
    ],
)
def test_the_search_prefers_edit_accuracy_then_drawdown(rows: list[Any], setting: float | None) -> None:
    found = resolved(UNIT, STEADY.grid, [searched(*row) for row in rows])
    assert (found.setting if found else None) == setting


def test_a_choice_uses_only_rows_of_its_own_model_and_protocol() -> None:
    rows = [searched(setting, 1.0, 0.0) for setting in STEADY.grid]
    assert resolved(UNIT, STEADY.grid, rows) is not None
    assert resolved(replace(UNIT, model_sha256="b" * 64), STEADY.grid, rows) is None
    assert resolved(UNIT, STEADY.grid, [*rows[:2], {**rows[2], "protocol": "0"}]) is None


def test_a_quick_unit_uses_the_middle_setting_without_a_search() -> None:
    found = resolved(replace(UNIT, kind="quick"), STEADY.grid, [])
    assert found is not None and found.setting == 0.2


def test_a_key_changes_with_every_input() -> None:
    unit = replace(UNIT, setting=0.1)
    others = [
        replace(unit, kind="search"), replace(unit, dataset="fever"), replace(unit, model_sha256="b" * 64),
        replace(unit, method="small"), replace(unit, num_edits=100), replace(unit, seed=1),
        replace(unit, setting=0.2),
    ]  # fmt: skip
    assert len({unit.key, *(other.key for other in others)}) == len(others) + 1
    assert replace(unit).key == unit.key


def add_rows(path: Path, start: int) -> None:
    results = ResultFile(path)
    for number in range(start, start + 20):
        results.add({"key": number, "method": "steady"})


def test_rows_of_many_processes_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_rows, args=(path, 20 * number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(row["key"] for row in json.loads(path.read_text())) == list(range(80))
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_rows_of_a_changed_method_are_dropped(tmp_path: Path) -> None:
    results = ResultFile(tmp_path / "rows.json")
    for number, name in enumerate(["steady", "small", "steady"]):
        results.add({"key": number, "method": name, "dataset": "here", "num_edits": 10 * (number + 1)})
    assert results.forget(["steady"], ["there"], [10, 30]) == 0
    assert results.forget(["steady"], ["here"], [20]) == 0
    assert results.forget(["steady"], ["there", "here"], [10]) == 1
    assert [row["key"] for row in results.rows()] == [1, 2]
    assert results.forget(["steady"], ["here"], [10, 30]) == 1
    assert [row["key"] for row in results.rows()] == [1]


def test_a_measurement_with_another_setting_replaces_the_first(tmp_path: Path) -> None:
    results = ResultFile(tmp_path / "rows.json")
    units = [
        replace(UNIT, kind=kind, setting=setting, seed=seed)
        for kind, setting, seed in [
            ("search", 0.1, 0),
            ("search", 0.2, 0),
            ("measure", 0.1, 0),
            ("measure", 0.1, 1),
            ("measure", 0.2, 0),
        ]
    ]
    for unit in units:
        results.add({"protocol": PROTOCOL, **asdict(unit)})
    assert units_of(results.rows()) == {units[place] for place in (0, 1, 3, 4)}


def test_a_finished_unit_is_recognized_unless_its_protocol_changed() -> None:
    unit = replace(UNIT, setting=0.1)
    row = {"protocol": PROTOCOL, **asdict(unit), "edit_accuracy": 1.0}
    assert units_of([row]) == {unit}
    assert units_of([{**row, "protocol": "0"}]) == set()
    assert replace(unit, setting=0.2) not in units_of([row])


def test_the_committed_rows_are_small_and_every_one_is_recognized() -> None:
    files = list(RESULTS.glob("*.json"))
    assert sum(path.stat().st_size for path in files if path.name != "quick.json") <= 500_000
    rows = ResultFile(RESULTS / "quality.json").rows()
    assert len(units_of(rows)) == len(rows) > 700


def test_a_row_that_is_not_json_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    results = ResultFile(tmp_path / "rows.json")
    results.add({"key": 1, "method": "steady"})
    with pytest.raises(ValueError):
        results.add({"key": 2, "method": "steady", "drawdown": float("nan")})
    assert [row["key"] for row in results.rows()] == [1]


def try_to_claim(folder: Path, answers: Any) -> None:
    with claimed("k", folder) as mine:
        answers.put(mine)


def claimed_elsewhere(folder: Path) -> bool:
    """Whether another process can claim the unit now."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=try_to_claim, args=(folder, answers))
    process.start()
    mine: bool = answers.get(timeout=60)
    process.join()
    return mine


def test_a_unit_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed("k", tmp_path) as mine:
        assert mine
        assert not claimed_elsewhere(tmp_path)
    assert claimed_elsewhere(tmp_path)


def test_expected_seconds_come_from_similar_units() -> None:
    like = {"dataset": "nli", "method": "steady", "num_edits": 10, "kind": "measure"}
    rows = [
        {**like, "unit_seconds": 4.0},
        {**like, "unit_seconds": 6.0},
        {**like, "kind": "search", "unit_seconds": 90.0},
    ]
    assert expected_seconds(UNIT, rows) == 5.0
    assert expected_seconds(replace(UNIT, num_edits=1), rows) is None


def test_only_rows_of_the_weights_measured_last_are_compared() -> None:
    kinds = ["measure", "measure", "search", "measure", "search"]
    rows = [
        {"key": number, "kind": kind, "dataset": dataset, "model_sha256": sha256}
        for number, (kind, dataset, sha256) in enumerate(
            zip(
                kinds,
                ["fever", "nli", "fever", "fever", "nli"],
                ["old", "only", "new", "new", "next"],
                strict=True,
            )
        )
    ]
    assert [row["key"] for row in of_newest_weights(rows)] == [1, 2, 3], "a search alone changes nothing"
    assert [row["key"] for row in of_newest_weights([rows[4]])] == [4]
