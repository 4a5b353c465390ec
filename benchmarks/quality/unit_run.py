"""Runs one unit of the quality benchmark in a process of its own and returns its row.

Because the process is forked, its peak memory is that of the unit, and a crash gives a row with an error
instead of ending the run. Does not know which units there are.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.interface import SharedWork
from benchmarks.quality.counts import counts
from benchmarks.quality.data import Material, material
from benchmarks.quality.jobs import DrawnJob, Sizes, draw_job, draw_validation_job, slices
from benchmarks.quality.measures import Outcomes, figures, measure
from benchmarks.quality.methods import EditedNetwork, Editing, Method, method
from benchmarks.quality.results import PROTOCOL, Row
from benchmarks.quality.units import SEQUENCE, Unit
from salem.models.loading import load
from salem.models.network import Network
from salem.parent_death import die_with_parent
from worker.activations.cache import SampleCache

SINGLE_EDITS = 20  # in a row of one edit at a time; its figures are averages
SLICE = 0.1  # of the held-out samples, for each single edit
SEQUENTIAL_BATCH = 100
CURVE = ("edit_accuracy", "generalization", "drawdown")  # figures after each batch of a sequence
LIMIT_S = 3_600  # longer than any unit should take
CACHE_BYTES = 8 * 2**30  # on disk, for the activations that single edits share


@dataclass(frozen=True)
class Work:
    """A unit and the sizes of its job."""

    unit: Unit
    sizes: Sizes
    limit: int | None  # of the material's reference samples


@dataclass(frozen=True)
class Result:
    """What editing gave, and what it cost."""

    outcomes: Outcomes
    cpu_seconds: float
    peak_bytes: int
    delta_bytes: int
    layer: str | None
    curve: tuple[dict[str, Any], ...] = ()


def run_apart(work: Work) -> Row:
    """The row of a unit, measured in a forked process; with `error` and without figures if it failed."""
    began = time.monotonic()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as scratch:  # so that a killed process leaves no files
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
    return {**_head(work), **found, "unit_seconds": round(time.monotonic() - began, 1)}


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
    """The part of a row that does not depend on how its unit ended."""
    return {"protocol": PROTOCOL, **asdict(work.unit)}


def _measured(work: Work, scratch: Path) -> Row:
    source = material(work.unit.dataset, work.limit)
    network = load(Path(source.folder), source.task, device="cpu")
    job = _job(work, source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.unit.seed)
        found = run_job(network, job, work.unit, scratch)
    values = figures(found.outcomes, perplexity=source.perplexity)
    row: Row = _rounded(values, values)
    if work.unit.kind == "search":
        return row
    row |= {
        "model": network.model.config.model_type,
        "cpu_seconds": round(found.cpu_seconds, 3),
        "peak_bytes": found.peak_bytes,
        "delta_bytes": found.delta_bytes,
        "held_out": len(job.held_out),
        "paraphrase_source": source.paraphrase_source,
        "counts": counts(found.outcomes, perplexity=source.perplexity),
    }
    return {**row, "curve": list(found.curve)} if found.curve else row


def _job(work: Work, source: Material) -> DrawnJob:
    unit = work.unit
    if unit.kind == "search":
        return draw_validation_job(source, unit.num_edits, work.sizes)
    return draw_job(source, SINGLE_EDITS if unit.num_edits == 1 else unit.num_edits, unit.seed, work.sizes)


def run_job(network: Network, job: DrawnJob, unit: Unit, scratch: Path) -> Result:
    """Edit and measure: all at once, one edit at a time, or one batch after another.

    `scratch` is a folder for the activations that single edits share.
    """
    if unit.num_edits == 1:
        return _singly(network, job, unit, SharedWork(SampleCache(scratch, CACHE_BYTES, unit.model_sha256)))
    if unit.num_edits >= SEQUENCE:
        return _in_sequence(network, job, unit)
    return _at_once(network, job, unit)


def _at_once(network: Network, job: DrawnJob, unit: Unit, shared_work: SharedWork | None = None) -> Result:
    """All corrections of a job in one editing."""
    edited, cpu_seconds = _edit(network, job, unit, shared_work=shared_work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Result(_ask(network, edited, job), cpu_seconds, peak, edited.delta_bytes, edited.layer)


def _singly(network: Network, job: DrawnJob, unit: Unit, shared_work: SharedWork) -> Result:
    """One edit at a time, each with its own slice of the held-out samples. Times and sizes are means."""
    num = len(job.corrections)
    parts = slices(job.held_out, SLICE, num)
    results = [
        _at_once(network, replace(job, corrections=(one,), held_out=part), unit, shared_work)
        for one, part in zip(job.corrections, parts, strict=True)
    ]
    outcomes = Outcomes()
    for result in results:
        outcomes = outcomes.joined(result.outcomes)
    layers = {result.layer for result in results}
    return Result(
        outcomes,
        sum(result.cpu_seconds for result in results) / num,
        max(result.peak_bytes for result in results),
        round(sum(result.delta_bytes for result in results) / num),
        layers.pop() if len(layers) == 1 else None,
    )


def _in_sequence(network: Network, job: DrawnJob, unit: Unit) -> Result:
    """Batches one after another, each on top of those before. After each batch, asks all edits so far."""
    edited: EditedNetwork | None = None
    cpu_seconds, curve = 0.0, []
    outcomes = Outcomes()
    for start in range(0, len(job.corrections), SEQUENTIAL_BATCH):
        stop = start + SEQUENTIAL_BATCH
        batch = replace(job, corrections=job.corrections[start:stop])
        edited, took = _edit(network, batch, unit, before=edited)
        cpu_seconds += took
        outcomes = _ask(network, edited, replace(job, corrections=job.corrections[:stop]))
        values = figures(outcomes, perplexity=job.material.perplexity)
        curve.append({"num_edits": stop, **_rounded(values, CURVE)})
    assert edited is not None, "a job has at least one edit"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Result(outcomes, cpu_seconds, peak, edited.delta_bytes, edited.layer, tuple(curve))


def _edit(
    network: Network,
    job: DrawnJob,
    unit: Unit,
    *,
    before: EditedNetwork | None = None,
    shared_work: SharedWork | None = None,
) -> tuple[EditedNetwork, float]:
    """The edited network, and the CPU seconds that editing took."""
    assert unit.setting is not None
    chosen: Method = method(unit.method)
    editing = Editing(
        network, job.batch(), job.corpus, unit.seed, unit.setting, before, shared_work or SharedWork()
    )
    began = time.process_time()
    edited = chosen.edit(editing)
    return edited, time.process_time() - began


def _ask(network: Network, edited: EditedNetwork, job: DrawnJob) -> Outcomes:
    return measure(network, edited, job.corrections, job.held_out, perplexity=job.material.perplexity)


def _rounded(values: Mapping[str, float | None], names: Iterable[str]) -> dict[str, float]:
    """The figures that were measured and are finite."""
    return {
        name: round(value, 8)
        for name in names
        if (value := values[name]) is not None and math.isfinite(value)
    }
