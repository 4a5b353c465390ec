"""The command line, `salem`: starts the service, or talks to a running one over HTTP.

The commands for this machine are in `serving`. Those for any service are in `remote`, `versions`, and
`editors`. Must not know how a model is edited.
"""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from app.cli import editors, remote, serving, versions
from app.cli.client import ServiceError
from salem.errors import SalemError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fixes wrong answers of models in production: small, measured, versioned weight deltas.",
)
app.add_typer(serving.commands)
app.add_typer(remote.commands)
app.add_typer(versions.commands)
app.add_typer(editors.commands, name="editors")


def main() -> None:
    """Run the command. Print an error with its remedy and without a traceback, and exit with 1."""
    try:
        app()
    except (ServiceError, SalemError) as error:
        places = getattr(error, "places", ())
        _exit_with(error.message, error.remedy, places)
    except ValidationError as error:
        places = tuple(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        _exit_with("a setting is not valid", "docs/settings.md lists the settings and their values", places)


def _exit_with(message: str, remedy: str | None, places: tuple[str, ...]) -> None:
    console = Console(stderr=True)
    console.print(Text(message, style="red"))
    for place in places if len(places) > 1 or not message.startswith(places[:1]) else ():
        console.print(Text(f"  {place}"))
    if remedy:
        console.print(Text(f"→ {remedy}"))
    sys.exit(1)
