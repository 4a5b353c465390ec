"""Commands for the content of a version: list its entries and broken neighbors, and remove edits.

Builds request bodies from arguments. Must not know how requests are sent or how answers are printed.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli.client import Client, ServiceError, client_for
from app.cli.printing import print_rows, report_job
from app.cli.remote import AsJson, Key, Url, Wait
from salem.records import ModelReference

commands = typer.Typer()

PAGE = 100
VersionName = Annotated[str, typer.Argument(help="Version (`name:3`) or alias (`name@production`).")]


@commands.command()
def entries(version: VersionName, as_json: AsJson = False, url: Url = None) -> None:
    """List the entries that act in a version, oldest first, for example `salem entries intents:3`."""
    with client_for(url) as client:
        path = f"{_path(client, version)}/entries"
        rows: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            page = client.get(path, limit=PAGE, after=rows[-1]["id"] if rows else None)
            rows += page["data"]
    if not as_json:
        rows = [row | {"keys": len(row["keys"]), "radius": _smallest_radius(row)} for row in rows]
    print_rows(rows, ("id", "input", "text_pair", "target", "forget", "keys", "radius"), as_json)
    if page["note"] and not as_json:
        typer.echo(page["note"], err=True)


@commands.command("broken-neighbors")
def broken_neighbors(version: VersionName, as_json: AsJson = False, url: Url = None) -> None:
    """List the near neighbors of a version's edits whose answer changed."""
    with client_for(url) as client:
        rows = client.get_all(f"{_path(client, version)}/broken-neighbors", "position")
    columns = ("edit", "kind", "origin", "input", "text_pair", "target", "before", "after", "held_out")
    print_rows(rows, columns, as_json)


@commands.command()
def remove(
    version: VersionName,
    edits: Annotated[
        list[str], typer.Argument(help="Edit ids, as `salem entries` shows them, for example 3.0")
    ],
    alias: Annotated[str | None, typer.Option(help="Alias to move to the new version.")] = None,
    key: Key = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Remove edits from a version: starts a job that makes a new version without them."""
    body = {"edits": edits, "alias": alias}
    with client_for(url) as client:
        report_job(client, client.post(f"{_path(client, version)}/removals", body, key), wait)


def _path(client: Client, text: str) -> str:
    """The path of a version. Looks up an alias."""
    try:
        reference = ModelReference.parse(text)
    except ValueError as error:
        raise ServiceError(str(error)) from error
    number = reference.number or 0
    if reference.alias is not None:
        number = client.get(f"/models/{reference.model}/aliases/{reference.alias}")["version"]
    return f"/models/{reference.model}/versions/{number}"


def _smallest_radius(row: dict[str, Any]) -> float | None:
    """The lowest similarity at which any key of the entry matches."""
    return min((key["radius"] for key in row["keys"]), default=None)
