"""Writes what the quality benchmark found into docs/results.md and draws its plots under docs/plots.

    python -m benchmarks.quality.report [--quick]

The tables stand between two markers; what is written by hand around them stays. Does not run anything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ablation import ablation_report
from benchmarks.quality.bounds import must_reach
from benchmarks.quality.plots import draw_balance, draw_sequence
from benchmarks.quality.results import RESULTS, ResultFile, Row, of_newest_weights
from benchmarks.quality.tables import Line, lines, table
from benchmarks.quality.units import (
    FRESH_SEEDS,
    SEQUENCE,
    SIZES,
)
from benchmarks.selection.report import selection_report

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and the plots from the rows that there are; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="from the rows of QUICK=1, printed, not written")
    options = parser.parse_args(argv)
    if options.quick or os.environ.get("QUICK"):
        print(report(ResultFile(RESULTS / "quick.json").rows(), plots=None))
        return 0
    rows = of_newest_weights(ResultFile(RESULTS / "quality.json").rows())
    if not rows:
        print("There are no rows yet: run `make bench-quality` first.", file=sys.stderr)
        return 1
    page = DOCS / "results.md"
    text = between_markers(page.read_text(), report(rows, DOCS / "plots"))
    selection, ablation = (RESULTS / f"{name}.json" for name in ("selection", "ablation"))
    if selection.is_file():
        part = selection_report(json.loads(selection.read_text()), DOCS / "plots")
        text = between_markers(text, part, "selection")
    if ablation.is_file():
        text = between_markers(text, ablation_report(json.loads(ablation.read_text())), "ablation")
    page.write_text(text)
    print(f"{len(rows)} rows written into {page.name}.")
    return 0


def between_markers(page: str, text: str, benchmark: str = "quality") -> str:
    """The page with `text` between the benchmark's markers, which are put at its end where it has none."""
    begin, end = (f"<!-- {benchmark} benchmark: {place} -->" for place in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    if not rest:
        before = page.rstrip("\n") + "\n\n"
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after or chr(10)}"


def report(rows: Sequence[Row], plots: Path | None) -> str:
    """All tables as Markdown; the plots are drawn into `plots` and shown, where a folder is named."""
    found = lines(row for row in rows if row["seed"] not in FRESH_SEEDS)
    parts = ["## Every method on every data set", _preface(rows)]
    parts += ["### What must be reached", must_reach(found)]
    if any(row["seed"] in FRESH_SEEDS for row in rows):
        parts += ["### The same on draws that nothing was chosen on", _FRESH, must_reach(lines(_fresh(rows)))]
    if plots is not None:
        plots.mkdir(exist_ok=True)
        parts += _figures(rows, found, plots)
    datasets = list(dict.fromkeys(dataset for dataset, _ in found))
    for dataset in datasets:
        parts.append(f"### {dataset}")
        for size in sorted(size for size in SIZES if (dataset, size) in found):
            parts += [_caption(dataset, size, found[dataset, size]), table(found[dataset, size])]
    parts += _appendix(rows)
    return "\n\n".join(part for part in parts if part)


_FRESH = (
    "The product's defaults were chosen while its figures above were looked at. These are of other seeds, "
    "first measured when the defaults stood; edits and held-out samples are drawn from the same sets, and "
    "the rivals are those above."
)


def _fresh(rows: Sequence[Row]) -> list[Row]:
    """The product's rows on fresh seeds, and the rivals' where there is one of it."""
    ours = [row for row in rows if row["seed"] in FRESH_SEEDS]
    groups = {(row["dataset"], row["num_edits"]) for row in ours}
    methods = {row["method"] for row in ours}
    rivals = [
        row for row in rows if row["method"] not in methods and (row["dataset"], row["num_edits"]) in groups
    ]
    return [*ours, *rivals]


def _preface(rows: Sequence[Row]) -> str:
    return (
        f"`make bench-quality`: {len(rows)} rows. Every method has the same base weights, edits, pass "
        "samples and held-out sets, and one hyperparameter searched over three values or four; the product "
        "has more of them, whose defaults were chosen while these figures were looked at. In brackets the "
        "95% interval: bootstrap over the samples of all seeds, which says nothing of how seeds differ; "
        "those stand in the tables of bounds. Bold: the best of a column; of drawdowns, among those within "
        ".02 of the best edit accuracy. Costs are of several days and machines. What each method is, and "
        "how each figure is defined: [benchmark methods](benchmark-methods.md)."
    )


def _figures(rows: Sequence[Row], found: Mapping[tuple[str, int], Sequence[Line]], plots: Path) -> list[str]:
    parts = []
    for size in sorted(size for size in SIZES if any(group[1] == size for group in found)):
        name = f"balance-{size}.svg"
        draw_balance({d: methods for (d, s), methods in found.items() if s == size}, size, plots / name)
        parts.append(f"![Edit accuracy against drawdown, {_edits(size)}](plots/{name})")
    if any("curve" in row for row in rows):
        draw_sequence([row for row in rows if "curve" in row], plots / "sequence.svg")
        parts.append("![Metrics over edits in sequence](plots/sequence.svg)")
    return parts


def _caption(dataset: str, size: int, methods: Sequence[Line]) -> str:
    row = methods[0].rows[0]
    origin = f", paraphrases: {row['paraphrase_source']}" if methods[0].figures["generalization"] else ""
    asked = "rise of perplexity" if "nll_rises" in row["counts"] else "answers"
    return (
        f"{dataset} ({row['model']}), {_edits(size)}, {row['held_out']} held-out samples ({asked}){origin}:"
    )


def _edits(size: int) -> str:
    if size == 1:
        return "one edit at a time"
    return f"{size:,} edits" + (" in sequence" if size >= SEQUENCE else "")


def _appendix(rows: Sequence[Row]) -> list[str]:
    """What the searches chose from, and what failed."""
    searched = [row for row in rows if row["kind"] == "search"]
    failed = [row for row in rows if "error" in row]
    parts = []
    if searched:
        parts += ["### The search", _search_table(searched)]
    if failed:
        named = [
            f"- {row['dataset']}, {row['method']}, {_edits(row['num_edits'])}, seed {row['seed']}, "
            f"setting {row['setting']:g}: {row['error']}"
            for row in failed
        ]
        parts += ["### Rows that failed", "\n".join(named)]
    return parts


def _search_table(rows: Sequence[Row]) -> str:
    """One line per data set and method: each value tried with edit accuracy and drawdown on validation."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["method"]), []).append(row)
    head = ["| data set | method | value: edit accuracy, drawdown on the validation job |", "|---|---|---|"]
    body = [
        f"| {dataset} | {method} | " + "; ".join(_tried(row) for row in sorted(found, key=_setting)) + " |"
        for (dataset, method), found in groups.items()
    ]
    return "\n".join([*head, *body])


def _tried(row: Row) -> str:
    if row.get("edit_accuracy") is None or row.get("drawdown") is None:
        return f"{row['setting']:g}: failed"
    return f"{row['setting']:g}: {row['edit_accuracy']:.2f}, {row['drawdown']:.4f}"


def _setting(row: Row) -> float:
    setting: float = row["setting"]
    return setting


if __name__ == "__main__":
    sys.exit(main())
