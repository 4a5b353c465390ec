"""Step 8: refuses a version whose metrics miss a bound of the request's requirements.

Must not know how the metrics are measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from salem.errors import RequirementMissed
from salem.records import DetailedMetrics, Requirements
from worker.pipeline.context import EditJob


def check_requirements(job: EditJob) -> EditJob:
    """The job, unless its version misses a bound.

    Raises:
        RequirementMissed: the message names each missed bound; the remedy has the notes of the version.
    """
    if missed := list(_missed(job.request.require, job.metrics)):
        told = " ".join(f"{note[:1].upper()}{note[1:]}." for note in job.metrics.notes)
        raise RequirementMissed(
            f"No version was made: {' and '.join(missed)}.",
            remedy=f"Change the edits, the options, or the requirements. {told}".strip(),
        )
    return job


def _missed(require: Requirements, metrics: DetailedMetrics) -> Iterator[str]:
    if (least := require.min_neighborhood) is not None:
        share = metrics.neighborhood
        if share is None:
            yield f"neighborhood was not measured, but require.min_neighborhood is {least:g}"
        elif share.value < least:
            figure = f"neighborhood is {share.value:.3f} on {share.count} neighbors"
            yield f"{figure}, below require.min_neighborhood {least:g}"
    if (most := require.max_drawdown) is not None:
        drop = metrics.drawdown
        if drop is None:
            yield f"drawdown was not measured, but require.max_drawdown is {most:g}"
        elif drop.value > most:
            figure = f"drawdown is {drop.value:.4f} on {drop.count} held-out pass samples"
            yield f"{figure}, above require.max_drawdown {most:g}"
