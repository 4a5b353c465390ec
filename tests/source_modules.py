"""Reads the product's source as modules with their imports, for tests of its structure.

Reads text with `ast` and imports nothing, so that it sees code that does not run here too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("salem", "app", "worker", "demo", "benchmarks")


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def imports(self) -> frozenset[tuple[int, str]]:
        """(line, absolute dotted name) of everything imported; `from a import b` counts as `a.b`."""
        return frozenset(
            (node.lineno, name) for node in ast.walk(self.tree) for name in self._imported_names(node)
        )

    def _imported_names(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = [node.module] if node.module else []
            if node.level:
                own = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
                source = own[: len(own) - node.level + 1] + source
            yield from (".".join([*source, alias.name]) for alias in node.names)


def read_module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(), filename=str(path)))


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the product, packages' own `__init__` included."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(read_module(path) for path in paths)


@cache
def modules_of_tests() -> tuple[Module, ...]:
    """Every module of the tests."""
    return tuple(read_module(path) for path in sorted((ROOT / "tests").rglob("*.py")))


def prefixes(name: str) -> Iterator[str]:
    """A dotted name and its parents, longest first: `a.b.c`, `a.b`, `a`."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def target_module(name: str) -> str | None:
    """The module that an imported name lives in: `salem.records.Edit` -> `salem.records`."""
    known = {module.name for module in modules()}
    return next((prefix for prefix in prefixes(name) if prefix in known), None)
