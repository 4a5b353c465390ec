"""Compares the pages with the code: links, rooms, and routes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from source_modules import ROOT

from app.main import create_app
from salem.settings import Settings

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_work(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def test_the_architecture_page_lists_every_room() -> None:
    tree = re.search(r"```\n(app/.+?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert tree
    package, listed = "", set()
    for indent, name in re.findall(r"^( *)(\w+)/? ", tree[1].replace(".py ", "/ "), flags=re.MULTILINE):
        package = package if indent else name
        listed |= {f"{package}/{name}"} if indent else set()
    rooms = {
        str(init.parent.relative_to(ROOT))
        for package in ("app", "worker", "salem")
        for init in (ROOT / package).glob("*/__init__.py")
    }
    assert rooms <= listed
    assert all((ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file() for room in listed)


def test_the_api_page_lists_exactly_the_routes(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path))
    served = {
        f"{method.upper()} {re.sub(r'{[^}]+}', '{}', path)}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    page = (ROOT / "docs" / "api.md").read_text()
    table = page[page.index("## Routes") : page.index("## Limits")]
    listed = {
        f"{method} {re.sub(r'{[^}]+}', '{}', path)}"
        for method, path in re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)`", table)
    }
    assert listed == served
