"""Step 8: refuses a version whose metrics miss a bound of the request's gate.

Must not know how the metrics are measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from salem.errors import GateMissed
from salem.records import DetailedMetrics, Gate
from worker.pipeline.context import EditJob


def check_gate(job: EditJob) -> EditJob:
    """The job, unless its version misses a bound.

    Raises:
        GateMissed: the message names each bound that is missed; the remedy has the notes of the version.
    """
    if missed := list(_missed(job.request.gate, job.metrics)):
        told = " ".join(f"{note[:1].upper()}{note[1:]}." for note in job.metrics.notes)
        raise GateMissed(
            f"No version was made: {' and '.join(missed)}.",
            remedy=f"Change the edits, the options, or the gate. {told}".strip(),
        )
    return job


def _missed(gate: Gate, metrics: DetailedMetrics) -> Iterator[str]:
    if (least := gate.min_neighborhood) is not None:
        share = metrics.neighborhood
        if share is None:
            yield f"neighborhood was not measured, but gate.min_neighborhood is {least:g}"
        elif share.value < least:
            figure = f"neighborhood is {share.value:.3f} on {share.count} neighbors"
            yield f"{figure}, below gate.min_neighborhood {least:g}"
    if (most := gate.max_drawdown) is not None:
        drop = metrics.drawdown
        if drop is None:
            yield f"drawdown was not measured, but gate.max_drawdown is {most:g}"
        elif drop.value > most:
            figure = f"drawdown is {drop.value:.4f} on {drop.count} held-out pass samples"
            yield f"{figure}, above gate.max_drawdown {most:g}"
