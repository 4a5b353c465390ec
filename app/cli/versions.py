"""Commands about what is in a version: its entries, and a version without some of its edits.

Knows arguments and request bodies. Does not know how HTTP is spoken or how answers are laid out.
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
Of = Annotated[str, typer.Argument(help="Version (`name:3`) or alias (`name@production`).")]


@commands.command()
def entries(version: Of, as_json: AsJson = False, url: Url = None) -> None:
    """List the entries that act in a version, oldest first, e.g. `salem entries intents:3`."""
    with client_for(url) as client:
        path = f"{_path(client, version)}/entries"
        rows: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            page = client.get(path, limit=PAGE, after=rows[-1]["id"] if rows else None)
            rows += page["data"]
    if not as_json:
        rows = [row | {"keys": len(row["keys"]), "radius": _widest(row)} for row in rows]
    print_rows(rows, ("id", "input", "text_pair", "target", "forget", "keys", "radius"), as_json)
    if page["note"] and not as_json:
        typer.echo(page["note"], err=True)


@commands.command()
def remove(
    version: Of,
    edits: Annotated[list[str], typer.Argument(help="Ids of edits, as `salem entries` shows them: 3.0")],
    alias: Annotated[str | None, typer.Option(help="Alias to move to the new version.")] = None,
    key: Key = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Remove edits from a version: a new one is made without them, all others kept as they are."""
    body = {"edits": edits, "alias": alias}
    headers = {"Idempotency-Key": key} if key else None
    with client_for(url) as client:
        report_job(client, client.post(f"{_path(client, version)}/removals", body, headers), wait)


def _path(client: Client, text: str) -> str:
    """Where a version is; an alias is looked up."""
    try:
        reference = ModelReference.parse(text)
    except ValueError as error:
        raise ServiceError(str(error)) from error
    number = reference.number or 0
    if reference.alias is not None:
        number = client.get(f"/models/{reference.model}/aliases/{reference.alias}")["version"]
    return f"/models/{reference.model}/versions/{number}"


def _widest(row: dict[str, Any]) -> float | None:
    """The smallest likeness at which any key of the entry fires."""
    return min((key["radius"] for key in row["keys"]), default=None)
