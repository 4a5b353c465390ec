"""Commands that run or check the service on this machine.

Must not import the worker: it runs as a program of its own.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.service.doctor import examine
from app.service.supervisor import Supervisor
from salem import __version__
from salem.settings import Settings
from salem.storage.registry import Registry

commands = typer.Typer()

COLORS = {"ok": "green", "warn": "yellow", "missing": "red"}


@commands.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. Default: SALEM_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one. Default: SALEM_PORT.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Number of worker processes; 0 if you run workers elsewhere.")
    ] = 1,
) -> None:
    """Start the API, workers, and, unless REDIS_URL is set, a private Redis. Ctrl-C stops them all."""
    given: dict[str, Any] = {"host": host, "port": port}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    say = partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(Supervisor(settings, num_workers=workers, say=say).run())


@commands.command()
def worker() -> NoReturn:
    """Run one worker. It uses REDIS_URL, or the Redis of a `salem serve` with the same home."""
    # -P: the current folder may contain another package named `worker`
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker.main"])


@commands.command()
def migrate() -> None:
    """Migrate the database. `salem serve` does this, too."""
    registry = Registry.connect(Settings().effective_database_url)
    registry.migrate()
    registry.close()
    Console().print("the database is up to date")


@commands.command()
def doctor() -> None:
    """Check the installation, and say how to fix it. Exit with 1 if something needed is missing."""
    findings = examine(Settings())
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        fix = f"\n→ {finding.fix}" if finding.fix else ""
        state = Text(finding.state, style=COLORS[finding.state])
        table.add_row(state, finding.name, Text(f"{finding.found}{fix}"))
    Console().print(table)
    raise typer.Exit(1 if any(finding.state == "missing" for finding in findings) else 0)


@commands.command()
def version() -> None:
    """Print Salem's version."""
    typer.echo(__version__)
