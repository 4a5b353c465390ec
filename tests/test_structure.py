"""Checks the structure: rooms (`.importlinter`), import cycles, hidden imports, docstrings, honest tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import SLOWEST_FILES
from source_modules import ROOT, Module, modules, modules_of_tests, target_module


def fail_with(violations: list[str]) -> None:
    if violations:
        pytest.fail("\n".join(sorted(set(violations))), pytrace=False)


def test_rooms_import_only_from_rooms_below() -> None:
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_there_is_no_import_cycle() -> None:
    graph = {
        module.name: {
            target for _, name in module.imports if (target := target_module(name)) and target != module.name
        }
        for module in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(error.args[1]), pytrace=False)


PRODUCT = ("salem", "app", "worker")
STORAGE = sorted(
    module.name for module in modules() if f"{module.name}.".startswith(("salem.storage.", "salem.queue."))
)


@pytest.mark.parametrize("name", STORAGE)
def test_storage_never_imports_torch(name: str) -> None:
    by_name = {module.name: module for module in modules()}
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = by_name[waiting.pop()]
        seen.add(module.name)
        for line, imported in module.imports:
            if imported.split(".")[0] in ("torch", "transformers"):
                pytest.fail(f"{name} loads torch through {module.name}, line {line}", pytrace=False)
            target = target_module(imported)
            if target and target not in seen:
                waiting.append(target)


def test_records_import_only_pydantic() -> None:
    records = [module for module in modules() if f"{module.name}.".startswith("salem.records.")]
    assert len(records) > 1
    allowed = sys.stdlib_module_names | {"pydantic"}
    fail_with(
        [
            f"{module.name}:{line}: imports {name}"
            for module in records
            for line, name in module.imports
            if name.split(".")[0] not in allowed and not name.startswith("salem.records.")
        ]
    )


def test_no_import_is_hidden_in_a_function() -> None:
    fail_with(
        [
            f"{module.path.relative_to(ROOT)}:{node.lineno}: import inside {function.name}()"
            for module in [*modules(), *modules_of_tests()]
            for function in ast.walk(module.tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
    )


def test_no_assertion_depends_on_a_condition() -> None:
    """An assertion inside an `if` or an `except` passes silently if it is never reached."""
    fail_with(
        [
            f"{module.path.relative_to(ROOT)}:{node.lineno}: assert under a condition"
            for module in modules_of_tests()
            for branch in ast.walk(module.tree)
            if isinstance(branch, ast.If | ast.ExceptHandler | ast.match_case)
            for node in ast.walk(branch)
            if isinstance(node, ast.Assert)
        ]
    )


MAX_PARAMETERS, MAX_LINES = 6, 300


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function has, without `self` and `cls`."""
    given = function.args
    named = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(set(named) - {"self", "cls"}) + (given.vararg is not None) + (given.kwarg is not None)


def test_no_function_has_more_than_six_parameters() -> None:
    fail_with(
        [
            f"{module.name}.{function.name} has {num_parameters(function)} parameters"
            for module in modules()
            if module.name.split(".")[0] in PRODUCT and not module.name.startswith("app.cli.")
            for function in ast.walk(module.tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            and num_parameters(function) > MAX_PARAMETERS
        ]
    )


def test_no_file_has_more_than_300_lines() -> None:
    lengths = {m.name: len(m.path.read_text().splitlines()) for m in modules()}
    fail_with(
        [
            f"{name} has {length} lines"
            for name, length in lengths.items()
            if length > MAX_LINES and name.split(".")[0] in PRODUCT
        ]
    )


def test_every_module_starts_with_a_docstring() -> None:
    fail_with(
        [
            f"{module.path.relative_to(ROOT)} has no docstring: say its job and what it does not know"
            for module in modules()
            if module.tree.body and not ast.get_docstring(module.tree)
        ]
    )


def test_the_reader_resolves_imports() -> None:
    source = "from . import a\nfrom .b import c\nfrom ..d import e\nimport f.g\n"
    module = Module("app.api.jobs", ROOT / "app/api/jobs.py", ast.parse(source))
    assert {name for _, name in module.imports} == {"app.api.a", "app.api.b.c", "app.d.e", "f.g"}
    package = Module("app.api", ROOT / "app/api/__init__.py", ast.parse("from .b import c\n"))
    assert {name for _, name in package.imports} == {"app.api.b.c"}


def test_the_files_that_start_first_exist() -> None:
    assert [name for name in SLOWEST_FILES if not (ROOT / "tests" / f"test_{name}.py").exists()] == []
