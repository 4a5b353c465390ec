"""Measures training speed: steps from the edited block up against whole-model steps, and jobs over HTTP.

    python -m benchmarks.training [--rounds 7] [--steps 30] [--skip-jobs]

Steps use the same chunks (10 corrections, 32 pass samples), loss, rank-8 term, and optimizer at every block
of `minilm-nli`. A whole-model step is measured in three ways:

    frozen     a full forward pass with frozen weights, a backward pass to the term only, and stored answers
               from before the edit
    published  `frozen`, but each step computes the answers from before the edit, as MEND's own loop does
    ordinary   `published`, and also computes a gradient for every weight, as in plain fine-tuning

Jobs run through `salem serve` in a process of its own: one hosted model, then two jobs of ten edits.
QUICK=1 runs one round of two steps with a smaller reference set, and checks no bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor, nn

from benchmarks.command import Progress, exit_status, quick
from benchmarks.shared_data import edit_set, shared_folder
from demo.service import running_service
from salem.deltas.terms import LowRank, adding
from salem.errors import EditFailed
from salem.inference.predict import predict
from salem.models.batching import Answers, forward
from salem.models.loading import load
from salem.models.network import Network
from salem.records import Layer, Sample, Task
from worker.numerics.losses import kl_per_sample, margin_loss_per_sample
from worker.training.loop import CHUNK, Prepared, prepare_dataset

NUM_EDITS = 10
NUM_PASS, QUICK_PASS = 1_800, 200
NUM_HELD_OUT, QUICK_HELD_OUT = 1_000, 100
NUM_REFERENCE, QUICK_REFERENCE = 4_900, 600  # enough for the pass samples: correct and not held out
NUM_ERROR_CANDIDATES = 600  # samples outside the reference set, to find errors in
WAYS = ("frozen", "published", "ordinary")
RANK = 8
POLL_S = 0.05
MARGIN, KL_WEIGHT = 6.0, 3.0
FIGURES = ("edit_accuracy", "drawdown")  # of a job's result


class Factors:
    """The two trainable factors of a rank-8 update, always initialized the same way."""

    def __init__(self, layer: Layer) -> None:
        draw = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(RANK, layer.d_in, generator=draw) / layer.d_in**0.5)  # [r, d_in]
        self.b = nn.Parameter(torch.zeros(layer.d_out, RANK))  # [d_out, r]
        self.optimizer = torch.optim.Adam([self.a, self.b], lr=3e-3)

    def step(self, loss: Callable[[LowRank], Tensor]) -> float:
        """Take one optimizer step and return the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(LowRank(self.a, self.b))
        value.backward()
        self.optimizer.step()
        return float(value.detach())


@dataclass(frozen=True)
class Steps:
    """One layer's samples, for steps from its block up and for whole-model steps."""

    network: Network
    prepared: Prepared

    @property
    def path(self) -> str:
        return self.prepared.layer.path

    def suffix(self, term: LowRank) -> Tensor:
        """The loss of one step from the block up, as the product computes it."""
        before = self.prepared.keep.chunks[0].before
        assert before is not None
        with adding(self.network.module(self.path), term):
            return _loss(*(part.chunks[0].resume(self.network) for part in self._sides), before)

    def whole(self, term: LowRank, way: str) -> Tensor:
        """The same loss, from forward passes of the whole model."""
        edits, keep = (part.chunks[0].trunk.batch for part in self._sides)
        before = self.prepared.keep.chunks[0].before
        if way != "frozen":
            with torch.no_grad():
                before = forward(self.network, keep).logits.float().log_softmax(-1)
        assert before is not None
        with adding(self.network.module(self.path), term):
            return _loss(forward(self.network, edits), forward(self.network, keep), before)

    @property
    def _sides(self) -> tuple[Any, Any]:
        return self.prepared.corrections, self.prepared.keep


def _loss(edits: Answers, keep: Answers, before: Tensor) -> Tensor:
    pull = margin_loss_per_sample(edits, MARGIN).mean()
    return pull + KL_WEIGHT * kl_per_sample(before, keep).mean()


def main() -> int:
    """Measure everything; return the exit status, which is 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1 if quick() else 7)
    parser.add_argument("--steps", type=int, default=2 if quick() else 30)
    parser.add_argument("--skip-jobs", action="store_true")
    options = parser.parse_args()
    shared_folder()
    torch.set_flush_denormal(True)
    progress = Progress()
    progress("loading minilm-nli and looking for its errors")
    data = edit_set("nli", NUM_ERROR_CANDIDATES + (QUICK_REFERENCE if quick() else NUM_REFERENCE), 0)
    network = load(data.model, data.task, device="cpu")
    candidates, reference = data.reference[:NUM_ERROR_CANDIDATES], data.reference[NUM_ERROR_CANDIDATES:]
    wrong, right = split(network, candidates)
    curve = []
    for layer in network.layers:
        progress(f"timing the steps of block {layer.block} of {len(network.layers)}")
        curve.append(layer_row(network, layer, wrong, right, options))
    figures = step_figures(curve)
    if not options.skip_jobs:
        figures |= job_figures(data.model, reference, wrong, progress)
    progress("done")
    print(json.dumps(figures | {"curve": curve}))
    return 0 if quick() or all(holds(figures).values()) else 1


def holds(figures: dict[str, Any]) -> dict[str, bool]:
    """Whether each bound holds, for the figures that were measured."""
    bounds: dict[str, Callable[[float], bool]] = {
        "suffix_speedup": lambda value: value >= 3,
        "max_loss_difference": lambda value: value <= 1e-4,
        "job_s": lambda value: value <= 20,
        "second_job_over_first": lambda value: value <= 0.34,
    }
    return {name: bound(figures[name]) for name, bound in bounds.items() if name in figures}


def split(network: Network, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """(wrong, right): the samples that the model gets wrong, most confident first, and all others."""
    answers = predict(network, samples)
    pairs = list(zip(samples, answers, strict=True))
    wrong = [(max((answer.scores or {}).values()), s) for s, answer in pairs if answer.output != s.target]
    wrong.sort(key=lambda pair: -pair[0])
    return [sample for _, sample in wrong], [s for s, answer in pairs if answer.output == s.target]


def layer_row(
    network: Network, layer: Layer, wrong: Sequence[Sample], right: Sequence[Sample], options: Any
) -> dict[str, Any]:
    """One layer's row: milliseconds of each kind of step, ratios, and the largest difference in loss."""
    steps = Steps(network, prepare_dataset(network, wrong[:NUM_EDITS], right[: 2 * CHUNK], layer))
    trained, trained_whole = Factors(layer), Factors(layer)
    differences = [
        abs(trained.step(steps.suffix) - trained_whole.step(lambda term: steps.whole(term, "frozen")))
        for _ in range(options.steps)
    ]
    times: dict[str, list[float]] = {way: [] for way in ("suffix", *WAYS)}
    for _ in range(options.rounds):
        for way, seconds in times.items():
            seconds.append(_time_step(steps, way))
    row: dict[str, Any] = {"block": layer.block, "layer": layer.path}
    row |= {f"{way}_ms": round(1000 * statistics.median(seconds), 1) for way, seconds in times.items()}
    for way in WAYS:
        ratios = [whole / own for whole, own in zip(times[way], times["suffix"], strict=True)]
        row[f"over_{way}"] = round(statistics.median(ratios), 2)
    row["max_loss_difference"] = max(differences)
    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def _time_step(steps: Steps, way: str) -> float:
    factors = Factors(steps.prepared.layer)
    steps.network.model.requires_grad_(way == "ordinary")
    try:
        began = time.perf_counter()
        factors.step(steps.suffix if way == "suffix" else lambda term: steps.whole(term, way))
        return time.perf_counter() - began
    finally:
        steps.network.model.zero_grad(set_to_none=True)
        steps.network.model.requires_grad_(False)


def step_figures(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The headline: the best block from the middle up, without the last, which plain edits never use."""
    above = [row for row in curve if len(curve) // 2 <= row["block"] < len(curve) - 1]
    best, middle = max(above, key=lambda row: row["over_frozen"]), above[0]
    return {
        "suffix_speedup": best["over_frozen"],
        "suffix_speedup_block": best["block"],
        "middle_block": {way: middle[f"over_{way}"] for way in WAYS} | {"block": middle["block"]},
        "max_loss_difference": max(row["max_loss_difference"] for row in curve),
    }


def job_figures(
    model: Path, reference: Sequence[Sample], wrong: Sequence[Sample], progress: Progress
) -> dict[str, Any]:
    """Run two jobs of ten edits on one hosted model, over HTTP, with the real queue and worker."""
    progress("starting the service")
    with (
        tempfile.TemporaryDirectory(prefix="salem-") as folder,
        running_service(Path(folder) / "home", model.parent) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        progress(f"hosting the model with {len(reference)} reference samples")
        registered = _job(client, "/models", model_body(model.name, reference))
        jobs = []
        for place in (0, NUM_EDITS):
            progress(f"job {len(jobs) + 1} of 2")
            jobs.append(_job(client, "/edits", edit_body(wrong[place:][:NUM_EDITS])))
    first, second = jobs
    return {
        "job_s": round(first["seconds"], 2),
        "second_job_s": round(second["seconds"], 2),
        "second_job_over_first": round(second["seconds"] / first["seconds"], 3),
        "registration_s": round(registered["seconds"], 1),
        "jobs": jobs,
    }


def model_body(folder: str, reference: Sequence[Sample]) -> dict[str, Any]:
    """The request that hosts the model in a folder, without duplicate reference samples."""
    rows = {s.content_hash: s.model_dump(exclude_defaults=True) for s in reference}
    source = {"kind": "folder", "path": folder}
    task = Task.SEQUENCE_CLASSIFICATION.value
    return {"name": "nli", "task": task, "source": source, "reference": list(rows.values())}


def edit_body(samples: Sequence[Sample]) -> dict[str, Any]:
    """The request for these edits on the base."""
    num_pass, num_held_out = (QUICK_PASS, QUICK_HELD_OUT) if quick() else (NUM_PASS, NUM_HELD_OUT)
    options = {"max_pass_samples": num_pass, "max_held_out": num_held_out}
    return {
        "model": "nli:0",
        "edits": [sample.model_dump(exclude_defaults=True) for sample in samples],
        "options": options,
    }


def _job(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Start a job and wait until it ends. Return its seconds, in total and per phase start, and its result.

    Raises:
        EditFailed: the job did not succeed.
    """
    began = time.monotonic()
    job = client.post(path, json=body).raise_for_status().json()
    phases: dict[str, float] = {}
    while job["finished_at"] is None:
        time.sleep(POLL_S)
        job = client.get(f"/jobs/{job['id']}").json()
        now = time.monotonic() - began
        phases.setdefault(job["phase"], round(now, 2))
    if job["state"] != "succeeded":
        raise EditFailed(f"The job has the state {job['state']}: {job['error']}")
    result = job["result"] or {}
    kept = {name: result[name] and result[name]["value"] for name in FIGURES if name in result}
    kept |= {name: result[name] for name in ("layer", "kind") if name in result}
    row = {"seconds": now, "phases_began_s": phases, **kept}
    print(f"{path}: {json.dumps(row)}", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(exit_status(main))
