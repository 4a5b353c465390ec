"""The chat benchmark's tables in Markdown, from its rows.

Must not know models or how a row was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.chat_quality.figures import pooled, rows_of
from benchmarks.chat_quality.questions import NEIGHBORS, WANTED
from benchmarks.chat_quality.scoring import Counts
from benchmarks.chat_quality.small_reference import NUM_OTHERS
from benchmarks.chat_quality.unit_run import OPEN
from benchmarks.chat_quality.units import REFERENCE_SIZES, Row
from benchmarks.quality.tables import markdown

INTRO = """\
`make bench-chat-quality`: SmolLM2-135M-Instruct, a chat model with 30 blocks, asked in its chat template. It
writes freely until it ends its turn. Edits come from zsRE, CounterFact, and WikiBigEdit in turn; every second
one is sent with a paraphrase. [Benchmark methods](../benchmark-methods.md) describes the kinds of questions.
[Back to the results](../results.md)."""

Columns = dict[str, list[Row]]  # the rows of each method and label


def columns(rows: Sequence[Row]) -> Columns:
    """One column for each method and label, in the order of measurement."""
    keys = dict.fromkeys((row["method"], row["label"]) for row in rows)
    named = {f"{method}{f' ({label})' if label else ''}": (method, label) for method, label in keys}
    return {name: rows_of(rows, *key) for name, key in named.items()}


def page(rows: Sequence[Row]) -> str:
    """All tables."""
    found = columns(rows)
    counts = {name: pooled(mine) for name, mine in found.items()}
    parts = ["# Editing a chat model", INTRO]
    for size in sorted({size for sizes in counts.values() for size in sizes}):
        at_size = {name: sizes[size] for name, sizes in counts.items() if size in sizes}
        parts += [f"## {size} edits", _wanted(at_size), _neighbors(at_size)]
    parts += ["## Jobs", _jobs(found)]
    return "\n\n".join(parts) + "\n"


def _wanted(counts: dict[str, dict[str, Counts]]) -> str:
    def cell(found: Counts) -> str:
        return f"{_share(found.contain, found.asked)} / {_number(found.exact, found.asked)}"

    return _table("gets the target: contains it / is exactly it", WANTED, counts, cell)


def _neighbors(counts: dict[str, dict[str, Counts]]) -> str:
    def cell(found: Counts) -> str:
        return f"{_share(found.taken_over, found.asked)} / {_number(found.changed, found.asked)}"

    return _table("should stay: gets the target / text changed", (*NEIGHBORS, OPEN), counts, cell)


def _table(
    title: str,
    kinds: Sequence[str],
    counts: dict[str, dict[str, Counts]],
    cell: Callable[[Counts], str],
) -> str:
    body = [
        [kind, *(cell(found[kind]) if found[kind].asked else "-" for found in counts.values())]
        for kind in kinds
    ]
    return markdown([title, *counts], body)


def _jobs(found: Columns) -> str:
    fired = f"of {NUM_OTHERS} other sentences, those on which one edit of a classifier fires"
    lines: list[tuple[str, Callable[[Sequence[Row]], str]]] = [
        ("edits that hold after three jobs in a chain", _chain),
        ("job of 10 edits, s", partial(_times, 10)),
        ("job of 100 edits, s", partial(_times, 100)),
        (f"{fired}, with {' / '.join(map(str, REFERENCE_SIZES))} reference samples", _fired),
    ]
    return markdown(["", *found], [[name, *map(value, found.values())] for name, value in lines])


def _chain(rows: Sequence[Row]) -> str:
    return next((_share(r["contain"], r["asked"]) for r in rows if r["kind"] == "chain"), "-")


def _fired(rows: Sequence[Row]) -> str:
    fired = [row["fired"] for row in rows if row["kind"] == "small_reference"]
    return " / ".join(str(number) for number in fired[-1].values()) if fired else "-"


def _times(size: int, rows: Sequence[Row]) -> str:
    times = [row["job_s"] for row in rows if row["kind"] == "edits" and row["num_edits"] == size]
    if not times:
        return "-"
    low, high = round(min(times)), round(max(times))
    return str(low) if low == high else f"{low} to {high}"


def _share(part: int, of: int) -> str:
    return f"{_number(part, of)} ({part}/{of})"


def _number(part: int, of: int) -> str:
    return f"{part / of:.2f}" if of else "-"
