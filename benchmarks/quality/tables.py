"""The rows of the quality benchmark as tables: figures with intervals.

Knows rows; does not know models, plots, or where a table is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.quality.counts import Counts, losses, paraphrases, rises, shares
from benchmarks.quality.resampling import Values, first, interval
from benchmarks.quality.results import Row
from benchmarks.quality.units import TIE
from worker.numerics.intervals import proportion


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One method on one data set with one number of edits; seeds are pooled."""

    method: str
    rows: tuple[Row, ...]
    figures: dict[str, Figure | None]

    def value(self, name: str) -> float | None:
        figure = self.figures[name]
        return None if figure is None else figure.value

    @property
    def by_seed(self) -> tuple[Line, ...]:
        """One line for each seed."""
        return tuple(_line(self.method, [row]) for row in self.rows)


def lines(rows: Iterable[Row]) -> dict[tuple[str, int], list[Line]]:
    """(data set, number of edits) -> its methods, in the order of rows. Skips searches and failures."""
    groups: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["kind"] != "search" and "error" not in row:
            groups[row["dataset"], row["num_edits"]][row["method"]].append(row)
    return {
        group: [_line(name, sorted(found, key=lambda row: row["seed"])) for name, found in methods.items()]
        for group, methods in groups.items()
    }


def _line(name: str, rows: Sequence[Row]) -> Line:
    kept = [row["counts"] for row in rows]
    found = {figure: _figure(read(kept), statistic) for figure, (read, statistic) in _POOLED.items()}
    if any("nll_rises" in one for one in kept):
        passages = rises(kept)
        # Perplexity is not a share: if no passage changed at all, there is nothing to draw from.
        found["drawdown"] = (
            _figure(passages, _relative_rise) if passages[:, 0].any() else Figure(0.0, 0.0, 0.0)
        )
    return Line(name, tuple(rows), found)


def _figure(values: Values, statistic: Callable[[Values], Values]) -> Figure | None:
    if not len(values):
        return None
    value = float(statistic(values.mean(0, keepdims=True))[0])
    if value in (0.0, 1.0):
        # All samples are equal, so the bootstrap would give an interval of width 0. Use the interval of a
        # share instead (Wilson 1927). Its samples are edits: paraphrases of one edit are not independent.
        share = proportion([value == 1.0] * len(values))
        assert share is not None
        return Figure(value, share.low, share.high)
    return Figure(value, *interval(values, statistic, np.random.default_rng(0)))


def _ratio(means: Values) -> Values:
    return means[:, 0] / means[:, 1]


def _relative_rise(means: Values) -> Values:
    return np.expm1(np.minimum(_ratio(means), 50.0))


_POOLED: dict[str, tuple[Callable[[Sequence[Counts]], Values], Callable[[Values], Values]]] = {
    "edit_accuracy": (partial(shares, name="edits"), first),
    "generalization": (paraphrases, _ratio),
    "drawdown": (losses, first),
    "neighborhood": (partial(shares, name="neighbors"), first),
    "portability": (partial(shares, name="portability"), first),
}
_MEANS = ("edit_accuracy_forced", "generalization_forced", "drawdown_forced", "cpu_seconds", "peak_bytes")


def mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a row's figure over seeds."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def table(methods: Sequence[Line]) -> str:
    """A Markdown table of the methods, with the best value of each column in bold.

    Costs have no best, because they were measured on several machines. The best drawdown is the smallest
    among the methods whose edit accuracy ties with the best.
    """
    names = [name for name in _POOLED if any(line.figures[name] for line in methods)]
    names += [n for n in (*_MEANS, "delta_bytes") if any(mean(line.rows, n) is not None for line in methods)]
    best = {name: _best(methods, name) for name in names}
    head = ["method", *(_HEADS.get(name, name.replace("_", " ")) for name in names), "seeds"]
    body = [
        [line.method, *(_cell(line, name, best[name]) for name in names), str(len(line.rows))]
        for line in methods
    ]
    return markdown(head, body)


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of cells."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


_HEADS = {
    "edit_accuracy_forced": "edit accuracy, forced",
    "generalization_forced": "generalization, forced",
    "drawdown_forced": "drawdown, forced",
    "cpu_seconds": "CPU s",
    "peak_bytes": "peak MB",
    "delta_bytes": "delta kB",
}
_SCALES = {"peak_bytes": 1e-6, "delta_bytes": 1e-3}
_COSTS = {"cpu_seconds", "peak_bytes", "delta_bytes"}


def _best(methods: Sequence[Line], name: str) -> set[str]:
    """The methods with the best value of a column."""
    if name in _COSTS:
        return set()
    harm = name.startswith("drawdown")
    least = max((line.value("edit_accuracy") or 0.0 for line in methods), default=0.0) - TIE
    counted = [line for line in methods if not harm or (line.value("edit_accuracy") or 0.0) >= least]
    values = {line.method: value for line in counted if (value := _value(line, name)) is not None}
    best = (min if harm else max)(values.values(), default=None)
    return {method for method, value in values.items() if value == best}


def _value(line: Line, name: str) -> float | None:
    return line.value(name) if name in line.figures else mean(line.rows, name)


def _cell(line: Line, name: str, best: set[str]) -> str:
    value = _value(line, name)
    if value is None:
        return "-"
    scaled = value * _SCALES.get(name, 1.0)
    shown = (
        f"{scaled:.0f}" if name in _SCALES else f"{scaled:.1f}" if name == "cpu_seconds" else share(scaled)
    )
    shown = f"**{shown}**" if line.method in best else shown
    figure = line.figures.get(name)
    return shown if figure is None else f"{shown} ({share(figure.low)} to {share(figure.high)})"


def share(value: float) -> str:
    """A figure as the tables show it."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.3g}"
