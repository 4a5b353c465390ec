"""The figures of a method, from its rows: shares by number of edits, and the worst case over these numbers.

Must not know models or how a row was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.chat_quality.questions import NEIGHBORS, WANTED
from benchmarks.chat_quality.scoring import Counts
from benchmarks.chat_quality.unit_run import OPEN
from benchmarks.chat_quality.units import PROTOCOL, Row

NAMES = {"edit": "edit_accuracy"}  # names of figures that differ from the kind
JOB_SIZES = (10, 100)


def rows_of(rows: Iterable[Row], method: str, label: str) -> list[Row]:
    """The comparable rows of one method: of each size, those with the last number of questions per edit."""
    mine = [
        row for row in rows if (row["protocol"], row["method"], row["label"]) == (PROTOCOL, method, label)
    ]
    last = {row["num_edits"]: row["per_edit"] for row in mine if row["kind"] == "edits"}
    return [row for row in mine if row["kind"] != "edits" or row["per_edit"] == last[row["num_edits"]]]


def pooled(rows: Sequence[Row]) -> dict[int, dict[str, Counts]]:
    """The counts of each kind by number of edits, the draws added up."""
    found: dict[int, dict[str, Counts]] = {}
    for row in rows:
        if row["kind"] == "edits":
            kinds = found.setdefault(row["num_edits"], {})
            for kind, counts in row["counts"].items():
                kinds[kind] = kinds.get(kind, Counts()) + Counts(**counts)
    return dict(sorted(found.items()))


def figures(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """The worst case of each figure over the numbers of edits; None if it was not measured."""
    counts = pooled(rows)
    found: dict[str, float | int | None] = {}
    for kind in WANTED:
        name = NAMES.get(kind, kind)
        found[name] = _worst(counts, kind, ("contain", "asked"), min)
        found[f"{name}_exact"] = _worst(counts, kind, ("exact", "asked"), min)
    for kind in NEIGHBORS:
        found[kind] = _worst(counts, kind, ("taken_over", "asked"), max)
        found[f"{kind}_changed"] = _worst(counts, kind, ("changed", "asked"), max)
    found[OPEN] = _worst(counts, OPEN, ("changed", "asked"), max)
    chains = [row["contain"] / row["asked"] for row in rows if row["kind"] == "chain"]
    found["chain_holds"] = min(chains, default=None)
    fired = [max(row["fired"].values()) for row in rows if row["kind"] == "small_reference"]
    found["small_reference_fired"] = max(fired, default=None)
    for size in JOB_SIZES:
        times = [row["job_s"] for row in rows if row["kind"] == "edits" and row["num_edits"] == size]
        found[f"job_{size}_s"] = max(times, default=None)
    return found


def share(part: int, of: int) -> float | None:
    """A share, rounded; None of nothing."""
    return round(part / of, 4) if of else None


def _worst(
    counts: Mapping[int, Mapping[str, Counts]], kind: str, parts: tuple[str, str], pick: type[min] | type[max]
) -> float | None:
    shares = [
        share(getattr(kinds[kind], parts[0]), getattr(kinds[kind], parts[1]))
        for kinds in counts.values()
        if kind in kinds
    ]
    return pick((value for value in shares if value is not None), default=None)
