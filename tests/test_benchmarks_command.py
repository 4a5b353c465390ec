"""Every benchmark command: one sentence if its data is missing, progress on stderr, and a quick mode."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from source_modules import modules

from benchmarks import command
from benchmarks.command import NOT_FOUND, Progress, exit_status, quick
from benchmarks.shared_data import shared_folder, shared_model
from salem.errors import Misconfigured

COMMANDS = sorted(
    module.name.removesuffix(".__main__")
    for module in modules()
    if module.name.startswith("benchmarks.")
    and 'if __name__ == "__main__"' in module.path.read_text()
    and module.name != "benchmarks.quality.report"  # reads results only
)
WITHOUT_DATA = {"benchmarks.chain", "benchmarks.text_scopes"}  # they make up all that they need
WITH_DATA = [name for name in COMMANDS if name not in WITHOUT_DATA]


def test_the_benchmarks_are_found() -> None:
    assert {"benchmarks.quality", "benchmarks.selection", "benchmarks.training"} <= set(COMMANDS)


@pytest.mark.parametrize("name", WITH_DATA)
def test_missing_data_gives_one_sentence_and_exit_status_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALEM_SHARED", str(tmp_path / "absent"))
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == NOT_FOUND
    printed = capsys.readouterr()
    (sentence,) = printed.err.splitlines()
    assert printed.out == ""
    assert "set SALEM_SHARED to the folder that holds models/ and data/" in sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_has_a_quick_mode_and_shows_progress(name: str) -> None:
    parts = [m for m in modules() if m.name == name or m.name.startswith(f"{name}.")]
    imported = {imported for module in parts for _, imported in module.imports}
    assert {"benchmarks.command.quick", "benchmarks.command.exit_status"} <= imported
    assert "benchmarks.command.Progress" in imported


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SALEM_SHARED", str(tmp_path))
    assert shared_folder() == tmp_path
    with pytest.raises(Misconfigured, match="minilm-nli"):
        shared_model("minilm-nli")


def test_the_exit_status_of_a_benchmark_is_passed_on() -> None:
    assert exit_status(lambda: 1) == 1


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_quick_is_read_from_the_environment(
    value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICK", value)
    assert quick() is expected


def test_progress_shows_the_time_since_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 102.5])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    Progress()("nli: timing selection")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "[   2.5 s] nli: timing selection\n"
