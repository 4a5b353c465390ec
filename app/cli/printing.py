"""Prints answers in a terminal: tables, JSON, and the progress of a job. Must not know HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from app.cli.client import Client


def print_json(answer: Any) -> None:
    """Print an answer as JSON."""
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print a list as a table or as JSON."""
    if as_json:
        print_json(list(rows))
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console().print(table)


def report_job(client: Client, job: dict[str, Any], wait: bool) -> None:
    """Print a new job. Or wait for its end, print its result, and exit with 1 unless it succeeded."""
    if not wait:
        print_json(job)
        return
    progress = Progress(
        TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)
    )
    with progress:
        bar = progress.add_task(job["phase"], total=1.0)
        ended = client.wait_for_job(
            job["id"],
            lambda seen: progress.update(bar, description=seen["phase"], completed=seen["progress"]),
        )
    print_json({key: ended[key] for key in ("id", "model", "state", "result", "error")})
    if ended["state"] != "succeeded":
        raise typer.Exit(1)


def _cell(value: Any) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.2f}")
    return Text("" if value is None else str(value))
