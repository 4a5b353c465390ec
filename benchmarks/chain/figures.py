"""What is measured of versions that a service already has: seconds, resident bytes, and response sizes."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Sequence
from pathlib import Path

from starlette.testclient import TestClient

from benchmarks.chain.service import WORDS, Bench, edit_request
from salem.deltas.terms import Scoped
from salem.records import JobKind, Version

NUM_INPUTS, WARM = 8, 3
NUM_CHAINS = 8  # versions whose memory is measured together, because a single one is lost in the noise


def paired_seconds(
    client: TestClient, bench: Bench, versions: Sequence[Version], rounds: int
) -> list[list[float]]:
    """Seconds of /predict for each version. Each round asks all versions; half of the inputs are edits."""
    matching = bench.texts[:: max(1, 2 * len(bench.texts) // NUM_INPUTS)][: NUM_INPUTS // 2]
    other = [f"{text.input} {WORDS[place]} {WORDS[-place]}"[::-1] for place, text in enumerate(matching, 1)]
    inputs = [*(text.input for text in matching), *other]
    seconds: list[list[float]] = [[] for _ in versions]
    for turn in range(rounds + WARM):
        order = list(enumerate(versions))
        for place, version in order if turn % 2 else reversed(order):
            began = time.perf_counter()
            _predict(client, version.reference, inputs)
            seconds[place].append(time.perf_counter() - began)
    return [each[WARM:] for each in seconds]


def chain_memory(client: TestClient, single: Version, last: Version, whole: Scoped) -> float:
    """Resident bytes added by loading the newest chains, over the bytes of their keys and values."""
    numbers = range(last.number - NUM_CHAINS, last.number + 1)
    for reference in (single.reference, f"m:{numbers[0]}"):  # loads the model and the metric
        _predict(client, reference, ["anything"])
    before = _resident_bytes()
    for number in numbers[1:]:
        _predict(client, f"m:{number}", ["anything"])
    entry_bytes = 4 * (whole.scope.keys[0].numel() + whole.values[0].numel())
    entries = sum(number - single.number for number in numbers[1:])
    return round((_resident_bytes() - before) / (entries * entry_bytes), 3)


def poll_bytes(client: TestClient, bench: Bench) -> int:
    """Response size of GET /jobs/{id} for a job with all the edits."""
    job, _ = bench.services.registry.jobs.create(JobKind.EDIT, "m", edit_request(bench, len(bench.texts)))
    return len(client.get(f"/jobs/{job.id}").raise_for_status().content)


def _predict(client: TestClient, reference: str, inputs: Sequence[str]) -> None:
    body = {"model": reference, "inputs": [{"input": text} for text in inputs]}
    client.post("/predict", json=body).raise_for_status()


def _resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
