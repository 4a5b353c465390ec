"""Plots of the quality benchmark: edit accuracy against drawdown, and figures over edits in sequence.

Draws with matplotlib into files. Does not know how a figure was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.quality.bounds import OURS
from benchmarks.quality.results import Row
from benchmarks.quality.tables import Line

COLUMNS = 3
LINEAR_BELOW = 0.005  # of drawdown, so that zero and small gains fit on the axis
_TICKS = (0, 0.005, 0.02, 0.1, 0.5)
_MARKERS = "osD^v<>phX*Pd8"
_SEQUENCE_FIGURES = ("edit_accuracy", "generalization", "drawdown")


def draw_balance(panels: Mapping[str, Sequence[Line]], size: int, path: Path) -> None:
    """One panel per data set: each method at its drawdown and edit accuracy, with 95% intervals."""
    figure, axes = _grid(list(panels))
    names = list(dict.fromkeys(line.method for methods in panels.values() for line in methods))
    for place, (axis, methods) in enumerate(zip(axes, panels.values(), strict=True)):
        for line in methods:
            _point(axis, line, names.index(line.method))
        axis.set_xscale("symlog", linthresh=LINEAR_BELOW)
        axis.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axis.set_ylim(-0.05, 1.05)
        axis.axvline(LINEAR_BELOW, color="0.8", linewidth=0.8, zorder=0)
        axis.axhline(0.98, color="0.8", linewidth=0.8, zorder=0)
        axis.set_xlabel("drawdown" if place >= len(panels) - COLUMNS else "")
        axis.set_ylabel("edit accuracy" if place % COLUMNS == 0 else "")
    _legend(figure, axes)
    figure.suptitle(
        f"Edit accuracy against drawdown, {size:,} edit{'s' if size > 1 else ''}: upper left is best"
    )
    _save(figure, path)


def draw_sequence(rows: Sequence[Row], path: Path) -> None:
    """One row of panels per data set: figures of all edits so far, over the number of edits."""
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    figure, axes = _grid(
        [f"{dataset}: {name.replace('_', ' ')}" for dataset in datasets for name in _SEQUENCE_FIGURES]
    )
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for place, axis in enumerate(axes):
        dataset, name = datasets[place // COLUMNS], _SEQUENCE_FIGURES[place % COLUMNS]
        for index, method in enumerate(methods):
            points = _mean_curve([r for r in rows if (r["dataset"], r["method"]) == (dataset, method)], name)
            axis.plot(
                *zip(*points, strict=True) if points else ([], []), label=method, **_style(method, index)
            )
        if name == "drawdown":
            axis.set_yscale("symlog", linthresh=LINEAR_BELOW)
        else:
            axis.set_ylim(-0.05, 1.05)
        axis.set_xlabel("edits")
    _legend(figure, axes)
    figure.suptitle("A hundred edits at a time, each batch on top of those before")
    _save(figure, path)


def draw_profiles(models: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One panel per data set: each layer's saliency as a share of the largest, and its score when edited."""
    figure, axes = _grid(list(models))
    for axis, layers in zip(axes, models.values(), strict=True):
        largest = max(layer["saliency"] for layer in layers)
        places = range(len(layers))
        axis.bar(places, [layer["saliency"] / largest for layer in layers], color="0.8", label="saliency")
        scores = [layer["score"] for layer in layers]
        axis.plot(places, scores, color="black", marker="o", markersize=3, label="score of editing it")
        starts = [i for i in places if not i or layers[i]["block"] != layers[i - 1]["block"]]
        axis.set_xticks(starts, [str(layers[i]["block"]) for i in starts])
        axis.set_xlabel("block (one mark per matrix)")
        axis.set_ylim(min(0, *scores) - 0.05, 1.05)
    _legend(figure, axes)
    figure.suptitle("Mean absolute gradient per layer, and the held-out score of editing each layer")
    _save(figure, path)


def _mean_curve(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(edits so far, mean of a figure over seeds)."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for point in row["curve"]:
            if point.get(name) is not None:
                found.setdefault(point["num_edits"], []).append(point[name])
    return [(edits, sum(values) / len(values)) for edits, values in sorted(found.items())]


def _grid(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    num_rows = max(1, -(-len(titles) // COLUMNS))
    figure = Figure(figsize=(4 * COLUMNS, 3.2 * num_rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(num_rows, COLUMNS, place + 1) for place in range(len(titles))]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
    return figure, axes


def _point(axis: Axes, line: Line, index: int) -> None:
    edit, drawdown = line.figures["edit_accuracy"], line.figures["drawdown"]
    if edit is None or drawdown is None:
        return
    axis.errorbar(
        drawdown.value,
        edit.value,
        xerr=[[max(0.0, drawdown.value - drawdown.low)], [max(0.0, drawdown.high - drawdown.value)]],
        yerr=[[max(0.0, edit.value - edit.low)], [max(0.0, edit.high - edit.value)]],
        label=line.method,
        elinewidth=0.6,
        linestyle="none",
        **_style(line.method, index),
    )


def _style(method: str, index: int) -> dict[str, object]:
    """Salem stands out. Every other method has its own color and marker, the same in every panel."""
    if method == OURS:
        return {"color": "black", "marker": "*", "markersize": 13, "zorder": 5}
    color = matplotlib.colormaps["tab20"](index % 20)
    return {"color": color, "marker": _MARKERS[index % len(_MARKERS)], "markersize": 5}


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=6, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    # Without a date and with fixed ids, the same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "salem"}):
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
