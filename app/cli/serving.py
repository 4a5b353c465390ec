"""Commands that run a part of the service, or look after it, on this machine.

The worker is started as a program: nothing of it is imported here.
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

COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


@commands.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; default SALEM_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Worker processes; 0 where others run them.")
    ] = 1,
) -> None:
    """Start the API, a worker and, unless REDIS_URL is set, a private Redis. Ctrl-C ends them all."""
    given: dict[str, Any] = {"host": host, "port": port}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    say = partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(Supervisor(settings, num_workers=workers, say=say).run())


@commands.command()
def worker() -> NoReturn:
    """Run one worker here, against REDIS_URL or the Redis of a `salem serve` with the same home."""
    # -P: the folder that one stands in may hold another package named `worker`
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker.main"])


@commands.command()
def migrate() -> None:
    """Bring the database's tables up to date. `salem serve` does it too."""
    registry = Registry.connect(Settings().effective_database_url)
    registry.migrate()
    registry.close()
    Console().print("the database is up to date")


@commands.command()
def doctor() -> None:
    """Say what is found, what is missing and how to fix it; exit 1 when something needed is missing."""
    findings = examine(Settings())
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        fix = f"\n→ {finding.fix}" if finding.fix else ""
        state = Text(finding.state, style=COLOURS[finding.state])
        table.add_row(state, finding.name, Text(f"{finding.found}{fix}"))
    Console().print(table)
    raise typer.Exit(1 if any(finding.state == "missing" for finding in findings) else 0)


@commands.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
