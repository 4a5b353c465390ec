"""The bounds that Salem must reach on every data set, and whether it does.

Knows lines of tables; does not know where a table is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.quality.tables import Line, markdown, share
from benchmarks.quality.units import SEQUENCE

OURS = "salem"
LEAST_EDIT_ACCURACY, LEAST_GENERALIZATION, MOST_DRAWDOWN = 0.98, 0.94, 0.005
SHARE_OF_RIVAL = 0.25  # of the best rival's drawdown, at most
COMPARABLE = 0.02  # a rival counts when its edit accuracy is no further below
IN_SEQUENCE = 0.9, 0.02  # least edit accuracy of all edits so far, most drawdown
MISSED = ", **missed**"
NOT_MEASURED, NO_RIVAL, NONE_AS_GOOD = "not measured", "no rival is measured yet", "none of"
UNJUDGED = (NOT_MEASURED, NO_RIVAL, NONE_AS_GOOD)


def must_reach(found: Mapping[tuple[str, int], Sequence[Line]]) -> str:
    """A table with a line for each data set and number of edits, and a sentence for each sequence."""
    head = ["data", "edits", f"edit accuracy, at least {LEAST_EDIT_ACCURACY}"]
    head += [f"generalization, at least {LEAST_GENERALIZATION}", f"drawdown, at most {MOST_DRAWDOWN}"]
    head += ["a quarter of the best rival's drawdown"]
    groups = sorted((item for item in found.items() if item[0][1] < SEQUENCE), key=lambda item: item[0][::-1])
    body = [
        [dataset, "one at a time" if size == 1 else str(size), *verdict(methods)]
        for (dataset, size), methods in groups
        if _ours(methods)
    ]
    if not body:
        return f"No row of {OURS} yet."
    parts = [_count([cell for _, _, *cells in body for cell in cells]), markdown(head, body)]
    parts += [
        f"{dataset}, {size:,} edits in sequence: {_sequence(line)}."
        for (dataset, size), methods in found.items()
        if size >= SEQUENCE and (line := _ours(methods))
    ]
    missing = [
        f"{dataset} (edits: {size:,})" for (dataset, size), methods in found.items() if not _ours(methods)
    ]
    if missing:
        parts.append(f"Measured for rivals but not for {OURS} yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def missed(found: Mapping[tuple[str, int], Sequence[Line]]) -> list[str]:
    """One sentence for each bound that Salem misses."""
    names = ("edit accuracy", "generalization", "drawdown", "a quarter of the best rival's drawdown")
    bounds = (
        f"at least {LEAST_EDIT_ACCURACY}",
        f"at least {LEAST_GENERALIZATION}",
        f"at most {MOST_DRAWDOWN}",
    )
    sentences = []
    for (dataset, size), methods in sorted(found.items(), key=lambda item: item[0][::-1]):
        ours = _ours(methods)
        if ours is None:
            continue
        if size >= SEQUENCE:
            if MISSED in (text := _sequence(ours)):
                sentences.append(f"{dataset}, {size:,} edits in sequence: {text.replace('**', '')}.")
            continue
        edits = "one edit at a time" if size == 1 else f"{size} edits"
        cells = verdict(methods)
        for name, bound, cell in zip(names, bounds, cells, strict=False):
            if cell.endswith(MISSED):
                sentences.append(f"{dataset}, {edits}: {name} {cell.split()[0].rstrip(',')} ({bound}).")
        if cells[3].endswith(MISSED):
            ours_text = share(ours.value("drawdown") or 0.0)
            sentences.append(
                f"{dataset}, {edits}: drawdown {ours_text}, and {names[3]} is {cells[3].split()[0]}."
            )
    return sentences


def _count(cells: Sequence[str]) -> str:
    judged = [cell for cell in cells if not cell.startswith(UNJUDGED)]
    missed = sum(cell.endswith(MISSED) for cell in judged)
    text = f"{len(judged) - missed} of {len(judged)} bounds hold"
    others = len(cells) - len(judged)
    return (
        f"{text}; {others} cannot be judged, because no rival edits as well or none was measured."
        if others
        else f"{text}."
    )


def verdict(methods: Sequence[Line]) -> list[str]:
    """Four cells: edit accuracy, generalization, drawdown, and the comparison with the best rival.

    A bound applies to the figure over all seeds; the figures of each seed are in parentheses. The methods
    include Salem.
    """
    ours = _ours(methods)
    assert ours is not None, f"there is a line of {OURS}"
    return [
        _cell(ours, "edit_accuracy", least=LEAST_EDIT_ACCURACY),
        _cell(ours, "generalization", least=LEAST_GENERALIZATION),
        _cell(ours, "drawdown", most=MOST_DRAWDOWN),
        _against_rivals(methods, ours.value("drawdown")),
    ]


def best_rival(methods: Sequence[Line]) -> Line | None:
    """The method with the least drawdown among those whose edit accuracy is at most a tie below Salem's."""
    ours = _ours(methods)
    least = ((ours and ours.value("edit_accuracy")) or 0.0) - COMPARABLE
    rivals = [
        line
        for line in methods
        if line.method != OURS
        and (line.value("edit_accuracy") or 0.0) >= least
        and line.value("drawdown") is not None
    ]
    return min(rivals, key=lambda line: line.value("drawdown") or 0.0, default=None)


def _against_rivals(methods: Sequence[Line], drawdown: float | None) -> str:
    rival = best_rival(methods)
    if rival is None:
        num_rivals = len(methods) - 1
        return f"{NONE_AS_GOOD} {num_rivals} edits as well" if num_rivals else NO_RIVAL
    bound = SHARE_OF_RIVAL * max(rival.value("drawdown") or 0.0, 0.0)
    held = drawdown is not None and drawdown <= bound
    return f"{share(bound)} ({rival.method})" + ("" if held else MISSED)


def _sequence(line: Line) -> str:
    least, most = IN_SEQUENCE
    edits = _cell(line, "edit_accuracy", least=least)
    drawdown = _cell(line, "drawdown", most=most)
    return f"edit accuracy {edits}, at least {least}; drawdown {drawdown}, at most {most}"


def _ours(methods: Sequence[Line]) -> Line | None:
    return next((line for line in methods if line.method == OURS), None)


def _cell(line: Line, name: str, *, least: float = float("-inf"), most: float = float("inf")) -> str:
    value = line.value(name)
    if value is None:
        return NOT_MEASURED
    text = share(value)
    if len(line.rows) > 1:
        text += f" ({', '.join(share(one.value(name) or 0.0) for one in line.by_seed)})"
    return text + ("" if least <= value <= most else MISSED)
