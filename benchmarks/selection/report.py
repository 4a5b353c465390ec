"""The results page on layer selection: which layer each way chooses, compared with editing every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.plots import draw_profiles

WAYS = {
    "absolute sample": "mean abs. gradient, per sample (the paper)",
    "absolute mean": "abs. mean gradient",
    "frobenius sample": "Frobenius norm, per sample",
    "frobenius mean": "Frobenius norm of the mean",
    "tracing": "causal tracing",
    "trial edits": "trial edits on the paper's first three",
}


def selection_report(found: Mapping[str, Any], plots: Path) -> str:
    """Regret and hits of every way to choose, what choosing costs, and the profiles as a plot."""
    sets: Mapping[str, Mapping[str, Any]] = found["sets"]
    draw_profiles({name: each["layers"] for name, each in sets.items()}, plots / "selection.svg")
    rows = [
        f"| {title} | "
        + " | ".join(f"{each['selection'][way]['regret_at_1']:.3f}" for each in sets.values())
        + f" | {sum(each['selection'][way]['hit_at_3'] for each in sets.values())} of {len(sets)} |"
        for way, title in WAYS.items()
    ]
    best = [f"{max(layer['score'] for layer in each['layers']):.3f}" for each in sets.values()]
    return "\n".join(
        [
            "# Layer selection",
            "",
            f"`make bench-selection`: {found['num_edits']} edits, seed {found['seed']}. Every layer gets the "
            "same full ridge edit. Its score is (edit accuracy + generalization) / 2 - drawdown on held-out "
            "samples. The table shows regret@1: the best layer's score minus the score of the first choice, "
            "which is made without those samples. Hit@3: the best layer is among the first three.",
            "",
            f"| first choice by | {' | '.join(sets)} | hit@3 |",
            "|" + "---|" * (len(sets) + 2),
            *rows,
            f"| the best layer's score | {' | '.join(best)} | |",
            "",
            "Ridge changes one matrix directly, so these scores do not apply to the default recipe.",
            "",
            "The cost of the paper's pass over all layers, on ten samples:",
            "",
            f"| cost | {' | '.join(sets)} | bound |",
            "|" + "---|" * (len(sets) + 2),
            _costs("of a forward and backward with frozen weights", sets, "time_over_plain", "at most 1.3"),
            _costs("causal tracing, times as long", sets, "tracing_over_selection", "at least 20"),
            _costs("of the memory of inference", sets, "memory_over_inference", "at most 1.2"),
            "",
            "![Saliency and what editing each layer came to](../plots/selection.svg)",
        ]
    )


def _costs(title: str, sets: Mapping[str, Mapping[str, Any]], name: str, bound: str) -> str:
    """A row: one figure of every set, of the pass that a job makes where there are several."""
    values = [
        each[name]["absolute"] if isinstance(each[name], dict) else each[name] for each in sets.values()
    ]
    return f"| {title} | {' | '.join(f'{value:.2f}' for value in values)} | {bound} |"
