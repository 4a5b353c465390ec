"""Commands for editors that are trained ahead of time.

Builds request bodies from arguments. Must not know how requests are sent or how answers are printed.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli.client import client_for
from app.cli.files import read_edit_request
from app.cli.printing import print_json, print_rows, report_job
from app.cli.remote import AsJson, Key, LayerPath, RequestFile, Seed, Url, Wait, given

commands = typer.Typer(no_args_is_help=True, help="Train editors ahead of time, and look at them.")

FIGURES = ("edit_accuracy", "generalization", "drawdown")


@commands.command()
def train(
    file: RequestFile,
    model: Annotated[str | None, typer.Option(help="Hosted model. Default: the file's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name for the editor.")] = None,
    layer: LayerPath = None,
    together: Annotated[
        int | None, typer.Option(help="Number of edits that the editor learns to apply at once.")
    ] = None,
    seed: Seed = None,
    key: Key = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Train an editor on a corpus of edits. Use it with `salem edits post --editor`."""
    body = read_edit_request(file)
    body["options"] = (body.get("options") or {}) | given(layer=layer, num_together=together, seed=seed)
    body |= given(model=model, name=name)
    with client_for(url) as client:
        report_job(client, client.post("/editors", body, key), wait)


@commands.command("list")
def list_all(
    model: Annotated[str | None, typer.Option(help="Only editors of this model.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List editors, newest first."""
    with client_for(url) as client:
        rows = client.get_all("/editors", "id", model=model)
    if not as_json:
        rows = [row | {name: _value(row["metrics"][name]) for name in FIGURES} for row in rows]
    columns = ("id", "name", "model", "layer", *FIGURES, "created_at")
    print_rows(rows, columns, as_json)


@commands.command()
def show(editor: Annotated[str, typer.Argument(help="Id of an editor.")], url: Url = None) -> None:
    """Show an editor and its metrics."""
    with client_for(url) as client:
        print_json(client.get(f"/editors/{editor}"))


def _value(figure: dict[str, Any] | None) -> float | None:
    return figure["value"] if figure else None
