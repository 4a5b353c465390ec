"""Measures what a long chain of versions costs to serve, keep in memory, sweep, and poll.

    python -m benchmarks.chain [--edits 1000] [--rounds 41]

A random model of MiniLM's size gets a chain of one-edit versions, and one version with all the same edits.
Nothing is trained, but files, database rows, and the API are real. Times are medians of paired rounds. The
last line is JSON:

    chain_over_single          time of /predict for the chain over that for the single version, 8 inputs
    chain_memory_over_factors  resident bytes added by loading chains, over the bytes of their keys and values
    outcomes_ms                time of /predict for a version with 12,000 outcomes minus that for one with 10
    sweep_s                    time of one sweep of the blob store with the whole chain in the database
    poll_kb                    response size of GET /jobs/{id} for a job with as many edits as the chain
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import structlog
from starlette.testclient import TestClient

from app.main import create_app
from app.service.reconciler import Reconciler
from benchmarks.chain.entries import all_entries, one_entry, stored
from benchmarks.chain.figures import chain_memory, paired_seconds, poll_bytes
from benchmarks.chain.service import Bench, build, publish
from benchmarks.command import Progress, exit_status, quick
from salem.records import Delta
from salem.scope.metric_files import pack_metric
from salem.settings import Settings

FEW, MANY = 10, 12_000  # outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Build the service, measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=100 if quick() else 1_000)
    parser.add_argument("--rounds", type=int, default=11 if quick() else 41)
    options, progress = parser.parse_args(argv), Progress()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), device="cpu", num_threads=1)
        progress("building a model of MiniLM's size")
        bench = build(settings, options.edits)
        found = measure(bench, settings, options.rounds, progress)
        bench.services.close()
    print(json.dumps(found | {"edits": options.edits, "rounds": options.rounds}))
    return 0


def measure(bench: Bench, settings: Settings, rounds: int, progress: Progress) -> dict[str, float]:
    """Publish the versions and return all figures by name."""
    whole = all_entries(bench)
    metric = bench.services.blobs.put(pack_metric(whole.scope.metric))
    progress(f"publishing one version with {len(bench.texts):,} edits, and a chain of as many versions")
    single = publish(bench, (stored(bench, whole, metric),), 0)
    chain: tuple[Delta, ...] = ()
    last = None
    for place in range(len(bench.texts)):
        chain = (*chain, stored(bench, one_entry(whole, place), metric))
        last = publish(bench, chain, last.number if last else 0)
        chain = last.deltas
        if not place % 100:
            progress(f"{place:,} versions")
    assert last is not None
    few, many = (publish(bench, single.deltas, single.number, num) for num in (FEW, MANY))
    found: dict[str, float] = {}
    with TestClient(create_app(settings)) as client:
        progress("loading chains")
        found["chain_memory_over_factors"] = chain_memory(client, single, last, whole)
        progress(f"{rounds} rounds of /predict")
        of_chain, of_single = paired_seconds(client, bench, (last, single), rounds)
        ratios = [one / other for one, other in zip(of_chain, of_single, strict=True)]
        found["chain_over_single"] = round(median(ratios), 3)
        progress(f"chain {median(of_chain) * 1e3:.1f} ms, single {median(of_single) * 1e3:.1f} ms")
        of_many, of_few = paired_seconds(client, bench, (many, few), rounds)
        differences = [one - other for one, other in zip(of_many, of_few, strict=True)]
        found["outcomes_ms"] = round(1e3 * median(differences), 2)
        progress("polling and sweeping")
        found["poll_kb"] = round(poll_bytes(client, bench) / 1024, 1)
    services = bench.services
    reconciler = Reconciler(settings, services.registry, services.queue, services.blobs)
    began = time.perf_counter()
    reconciler.sweep()
    found["sweep_s"] = round(time.perf_counter() - began, 3)
    return found


if __name__ == "__main__":
    sys.exit(exit_status(main))
