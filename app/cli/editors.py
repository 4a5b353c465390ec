"""Commands about editors that are trained ahead.

Knows arguments and request bodies. Does not know how HTTP is spoken or how answers are laid out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import client_for
from app.cli.files import read_edit_request
from app.cli.printing import print_json, print_rows, report_job
from app.cli.remote import AsJson, Key, Url, Wait, given

commands = typer.Typer(no_args_is_help=True, help="Editors that are trained ahead.")

FIGURES = ("edit_accuracy", "generalization", "drawdown")


@commands.command()
def train(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A request, or its edits.")],
    model: Annotated[str | None, typer.Option(help="Hosted model; default the file's own.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the editor.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to edit; default the most salient.")] = None,
    together: Annotated[int | None, typer.Option(help="Edits that it is to apply at once.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.")] = None,
    key: Key = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Train an editor on a corpus of edits; `salem edits post --editor` then uses it."""
    body = read_edit_request(file)
    body["options"] = (body.get("options") or {}) | given(layer=layer, num_together=together, seed=seed)
    body |= given(model=model, name=name)
    with client_for(url) as client:
        report_job(client, client.post("/editors", body, {"Idempotency-Key": key} if key else None), wait)


@commands.command("list")
def list_all(
    model: Annotated[str | None, typer.Option(help="Of this hosted model.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List editors, newest first."""
    with client_for(url) as client:
        rows = client.get("/editors", model=model)["data"]
    if not as_json:
        rows = [row | {name: _value(row["metrics"][name]) for name in FIGURES} for row in rows]
    columns = ("id", "name", "model", "layer", *FIGURES, "created_at")
    print_rows(rows, columns, as_json)


@commands.command()
def show(editor: str, url: Url = None) -> None:
    """Show an editor."""
    with client_for(url) as client:
        print_json(client.get(f"/editors/{editor}"))


def _value(figure: dict[str, Any] | None) -> float | None:
    return figure["value"] if figure else None
