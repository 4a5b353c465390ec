"""Runs one unit of the quality benchmark in a process of its own and gives its row.

The process is forked, so that its peak memory is that of the unit and a crash is a row with an error, not the
end of the run. Does not know which units there are.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.contract import Ahead
from benchmarks.quality.data import Material, material
from benchmarks.quality.jobs import DrawnJob, Sizes, draw_job, draw_validation_job, slices
from benchmarks.quality.measures import Outcomes, counts, figures, measure
from benchmarks.quality.methods import Edited, Editing, Method, method
from benchmarks.quality.units import PROTOCOL, SEQUENCE, Row, Unit
from salem.models.loading import load
from salem.models.network import Network
from salem.parent_death import die_with_parent
from salem.records import Sample
from worker.activations.cache import SampleCache

SINGLE_EDITS = 20  # over which one edit at a time is averaged
SLICE = 0.1  # of the held-out samples, for each of them
SEQUENTIAL_BATCH = 100
LIMIT_S = 3_600  # longer than any unit should take
CACHE_BYTES = 8 * 2**30  # on disk, for what single edits have in common

NO_FIGURES: dict[str, Any] = figures(Outcomes(), perplexity=False)


@dataclass(frozen=True)
class Work:
    """A unit with what it is measured with."""

    unit: Unit
    sizes: Sizes
    limit: int | None  # of the material


@dataclass(frozen=True)
class Result:
    """What a unit's editing came to."""

    outcomes: Outcomes
    seconds: float  # of one editing
    cpu_seconds: float
    peak_bytes: int
    delta_bytes: int
    layer: str | None
    curve: tuple[dict[str, Any], ...] = ()


def run_apart(work: Work) -> Row:
    """The row of a unit, measured in a forked process; null figures and `error` where it failed."""
    began = time.monotonic()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as scratch:  # ours: a killed process leaves nothing behind
        process = context.Process(target=_send, args=(work, theirs, os.getpid(), Path(scratch)))
        process.start()
        theirs.close()
        try:
            found = ours.recv() if ours.poll(LIMIT_S) else {"error": f"not done after {LIMIT_S} s"}
        except EOFError:
            found = {"error": "the process ended without a result"}
        if process.is_alive() and "error" in found:
            process.kill()
        process.join()
    if found.get("error") == "the process ended without a result":
        found["error"] += f" (exit code {process.exitcode})"
    return {**_head(work), **found, "unit_seconds": round(time.monotonic() - began, 2)}


def _send(work: Work, channel: Connection, parent: int, scratch: Path) -> None:
    die_with_parent(parent, signal.SIGKILL)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        found = _measured(work, scratch)
    except Exception as error:  # a row says what failed; the run goes on
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    channel.send(found)
    channel.close()


def _head(work: Work) -> Row:
    """What a row has however its unit ended."""
    unit = asdict(work.unit)
    return {
        "key": work.unit.key, "protocol": PROTOCOL, **unit, "model": None, **NO_FIGURES, "seconds": None,
        "cpu_seconds": None, "peak_bytes": None, "delta_bytes": None, "held_out": None, "layer": None,
    }  # fmt: skip


def _measured(work: Work, scratch: Path) -> Row:
    source = material(work.unit.dataset, work.limit)
    network = load(Path(source.folder), source.task, device="cpu")
    job = _job(work, source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.unit.seed)
        found = run_job(network, job, work.unit, scratch)
    values = figures(found.outcomes, perplexity=source.perplexity)
    row: Row = {
        "model": network.model.config.model_type,
        **{name: _finite(value) for name, value in values.items()},
        "seconds": round(found.seconds, 3),
        "cpu_seconds": round(found.cpu_seconds, 3),
        "peak_bytes": found.peak_bytes,
        "delta_bytes": found.delta_bytes,
        "held_out": len(job.held_out),
        "layer": found.layer,
        "num_edits_drawn": len(job.corrections),
        "generalization_source": source.rewordings,
        "counts": counts(found.outcomes, perplexity=source.perplexity),
    }
    return {**row, "curve": list(found.curve)} if found.curve else row


def _job(work: Work, source: Material) -> DrawnJob:
    unit = work.unit
    if unit.kind == "search":
        return draw_validation_job(source, unit.num_edits, work.sizes)
    return draw_job(source, SINGLE_EDITS if unit.num_edits == 1 else unit.num_edits, unit.seed, work.sizes)


def run_job(network: Network, job: DrawnJob, unit: Unit, scratch: Path) -> Result:
    """Edit and measure: all at once, one by one, or one batch after another.

    `scratch` is a folder for what single edits have in common.
    """
    if unit.num_edits == 1:
        return _singly(network, job, unit, Ahead(SampleCache(scratch, CACHE_BYTES, unit.model_sha256)))
    if unit.num_edits >= SEQUENCE:
        return _in_sequence(network, job, unit)
    return _at_once(network, job, unit, 0, len(job.corrections), job.held_out)


def _at_once(
    network: Network,
    job: DrawnJob,
    unit: Unit,
    start: int,
    stop: int,
    held_out: Sequence[Sample],
    ahead: Ahead | None = None,
) -> Result:
    edited, seconds, cpu_seconds = _edit(network, job, unit, start, stop, ahead=ahead)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes = _ask(network, edited, job, start, stop, held_out)
    return Result(outcomes, seconds, cpu_seconds, peak, edited.delta_bytes, edited.layer)


def _singly(network: Network, job: DrawnJob, unit: Unit, ahead: Ahead) -> Result:
    """One edit at a time, each on its own slice of the held-out samples; times and sizes are means."""
    num = len(job.corrections)
    parts = slices(job.held_out, SLICE, num)
    results = [_at_once(network, job, unit, i, i + 1, parts[i], ahead) for i in range(num)]
    outcomes = Outcomes()
    for result in results:
        outcomes = outcomes.joined(result.outcomes)
    layers = {result.layer for result in results}
    return Result(
        outcomes,
        sum(result.seconds for result in results) / num,
        sum(result.cpu_seconds for result in results) / num,
        max(result.peak_bytes for result in results),
        round(sum(result.delta_bytes for result in results) / num),
        layers.pop() if len(layers) == 1 else None,
    )


def _in_sequence(network: Network, job: DrawnJob, unit: Unit) -> Result:
    """Batches one after another, each on top of those before; all edits so far are asked after each."""
    edited: Edited | None = None
    seconds, cpu_seconds, curve = 0.0, 0.0, []
    outcomes = Outcomes()
    for start in range(0, len(job.corrections), SEQUENTIAL_BATCH):
        stop = start + SEQUENTIAL_BATCH
        edited, took, cpu_took = _edit(network, job, unit, start, stop, before=edited)
        seconds, cpu_seconds = seconds + took, cpu_seconds + cpu_took
        outcomes = _ask(network, edited, job, 0, stop, job.held_out)
        values = figures(outcomes, perplexity=job.material.perplexity)
        kept = ("edit_accuracy", "generalization", "drawdown", "neighborhood")
        curve.append({"num_edits": stop, **{name: _finite(values[name]) for name in kept}})
    assert edited is not None, "a job has at least one edit"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Result(outcomes, seconds, cpu_seconds, peak, edited.delta_bytes, edited.layer, tuple(curve))


def _edit(
    network: Network,
    job: DrawnJob,
    unit: Unit,
    start: int,
    stop: int,
    *,
    before: Edited | None = None,
    ahead: Ahead | None = None,
) -> tuple[Edited, float, float]:
    """The edited network, and how long it took: by the clock, and on the processor."""
    assert unit.setting is not None
    chosen: Method = method(unit.method)
    batch = job.batch(start, stop)
    editing = Editing(network, batch, job.corpus, unit.seed, unit.setting, before, ahead or Ahead())
    began, cpu_began = time.monotonic(), time.process_time()
    edited = chosen.edit(editing)
    return edited, time.monotonic() - began, time.process_time() - cpu_began


def _ask(
    network: Network, edited: Edited, job: DrawnJob, start: int, stop: int, held_out: Sequence[Sample]
) -> Outcomes:
    perplexity = job.material.perplexity
    return measure(network, edited, job.corrections[start:stop], held_out, perplexity=perplexity)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
