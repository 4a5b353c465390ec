"""Prints the demo: a live progress bar and colored tables in a terminal, plain lines anywhere else.

Must not know HTTP or the order of the demo's steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 110
PLAIN_EVERY_S = 5.0  # between two plain lines of the same phase
BAR_WIDTH = 32
TEXT_WIDTH = 46
METRICS = ("edit_accuracy", "adapt_accuracy", "generalization", "drawdown", "locality", "neighborhood")


class Report(Protocol):
    """Receives progress: the current phase, the share done, and the seconds left if known."""

    def __call__(self, phase: str, share: float, time_left_s: float | None = None) -> None: ...


class Screen:
    """The demo's output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        if not self._console.is_terminal:
            self._console = Console(file=self._console.file, width=PLAIN_WIDTH, no_color=True)

    def say(self, text: str = "") -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def track(self, title: str) -> Iterator[Report]:
        """Show a progress bar while the block runs, or a line now and then without a terminal."""
        if not self._console.is_terminal:
            yield _PlainReport(self, title)
            return
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _LiveReport(progress, progress.add_task(title, total=1.0, left=""), title)

    def saliency(self, scores: Sequence[dict[str, Any]]) -> None:
        """Show each layer's score as a bar, and mark the edited layer."""
        table = Table(title="Saliency of each layer", title_justify="left", box=None, pad_edge=False)
        for name, justify in (("layer", "left"), ("", "left"), ("score", "right"), ("", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        highest = max(score["score"] for score in scores)
        for score in scores:
            filled = round(BAR_WIDTH * score["score"] / highest) if highest else 0
            style = "bold green" if score["chosen"] else ""
            mark = "<- edited" if score["chosen"] else ""
            figure = f"{score['score']:.2e}"
            table.add_row(score["layer"], "█" * max(filled, 1), figure, mark, style=style)
        self._console.print(table)

    def edits(self, outcomes: Sequence[dict[str, Any]]) -> None:
        """Show each edit before and after, and how many of its paraphrases follow."""
        table = Table(title="Each edit, before and after", title_justify="left", box=None, pad_edge=False)
        for name in ("ticket", "before", "after", "correct", "paraphrases"):
            table.add_column(name, no_wrap=True)
        for outcome in outcomes:
            if outcome["kind"] != "edit":
                continue
            own = [o for o in outcomes if o["edit"] == outcome["edit"] and o["kind"] != "edit"]
            correct = sum(o["correct"] for o in own)
            verdict = Text("yes", "green") if outcome["correct"] else Text("NO", "bold red")
            table.add_row(
                Text(_short(outcome["input"])),
                outcome["before"],
                outcome["after"],
                verdict,
                f"{correct}/{len(own)}",
            )
        self._console.print(table)

    def figures(self, result: dict[str, Any]) -> None:
        """Show the metrics with their intervals."""
        table = Table(title="Metrics with 95% intervals", title_justify="left", box=None, pad_edge=False)
        for name in ("metric", "value", "95% interval", "samples"):
            table.add_column(name)
        for name in METRICS:
            interval = result[name]
            if interval is not None:
                between = f"{interval['low']:.4f} to {interval['high']:.4f}"
                table.add_row(name, f"{interval['value']:.4f}", between, str(interval["count"]))
        self._console.print(table)

    def side_by_side(self, questions: Sequence[str], answers: dict[str, Sequence[dict[str, Any]]]) -> None:
        """Show the answers of several versions to the same questions, one column per version."""
        table = Table(
            title="The same questions, before and after", title_justify="left", box=None, pad_edge=False
        )
        for name in ("question", *answers):
            table.add_column(name)
        for index, question in enumerate(questions):
            cells = [_answer(predictions[index]) for predictions in answers.values()]
            table.add_row(Text(question), *cells)
        self._console.print(table)


class _LiveReport:
    def __init__(self, progress: Progress, task: TaskID, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def __call__(self, phase: str, share: float, time_left_s: float | None = None) -> None:
        left = "" if time_left_s is None else f"{time_left_s:.0f} s left"
        label = f"{self._title}: {phase}" if phase else self._title
        self._progress.update(self._task, description=label, completed=share, left=left)


class _PlainReport:
    """Prints a line at the start of a phase and then every few seconds."""

    def __init__(self, screen: Screen, title: str) -> None:
        self._screen, self._title = screen, title
        self._phase: str | None = None
        self._said_at = 0.0

    def __call__(self, phase: str, share: float, time_left_s: float | None = None) -> None:
        now = time.monotonic()
        if phase == self._phase and now - self._said_at < PLAIN_EVERY_S:
            return
        self._phase, self._said_at = phase, now
        left = "" if time_left_s is None else f", {time_left_s:.0f} s left"
        label = f"{self._title}: {phase}" if phase else self._title
        self._screen.say(f"{label} {share:.0%}{left}")


def _short(text: str) -> str:
    return text if len(text) <= TEXT_WIDTH else text[: TEXT_WIDTH - 1] + "…"


def _answer(prediction: dict[str, Any]) -> str:
    return f"{prediction['output']} ({prediction['scores'][prediction['output']]:.2f})"
