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
import ctypes
import gc
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import structlog
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from app.api.services import Services
from app.main import create_app
from app.service.reconciler import Reconciler
from benchmarks.command import Progress, exit_status, quick
from salem.deltas.files import pack
from salem.deltas.terms import LayerDelta, Scoped
from salem.models import folders, loading
from salem.models.network import Network
from salem.records import (
    Delta,
    Edit,
    EditOutcome,
    EditRequest,
    FolderSource,
    HostedModel,
    JobKind,
    Layer,
    Metrics,
    ModelState,
    Proportion,
    RecipeOptions,
    Task,
    TextInput,
    Version,
)
from salem.scope.features import FeatureSpec, features, token_rarity
from salem.scope.first_token import first_tokens
from salem.scope.lexical import WORD_BUCKETS, WordCounts, pack_words
from salem.scope.metric import Metric
from salem.scope.metric_files import named, pack_metric
from salem.scope.state_scope import StateScope
from salem.settings import Settings
from salem.storage.publication import Publication
from worker.recipes.scoped.options import ScopedOptions

OPTIONS = RecipeOptions(recipe="scoped")
METRIC_WIDTH = ScopedOptions().metric_width
WIDTH, BLOCKS, LABELS = 384, 6, ("delivery", "refund", "login", "other")
WORDS = [f"{a}{b}{c}" for a in "bdfgkl" for b in ("an", "el", "or", "ut") for c in "aeiostmnpr"]
NUM_INPUTS, WARM, LEASE_S = 8, 3, 600.0
NUM_CHAINS = 8  # versions whose memory is measured together, because a single one is lost in the noise
FEW, MANY = 10, 12_000  # outcomes
KEY_FIELDS = (
    "keys",
    "radii",
    "token_ids",
    "token_probabilities",
    "first_token_weights",
    "words",
    "lexical_weights",
)


@dataclass(frozen=True)
class Bench:
    """A service with one hosted model, and the texts of its edits."""

    services: Services
    model: HostedModel
    network: Network
    layer: Layer
    texts: list[TextInput]


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


def build(settings: Settings, num_edits: int) -> Bench:
    """Register a model with random weights and draw the texts of the edits."""
    folder = settings.effective_models_root / "m"
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=12,
        intermediate_size=4 * WIDTH, pad_token_id=0, id2label=dict(enumerate(LABELS)),
        label2id={label: place for place, label in enumerate(LABELS)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    network = loading.load(folder, Task.SEQUENCE_CLASSIFICATION, device="cpu")
    services = Services.open(settings)
    model = HostedModel(
        name="m", task=network.task, source=FolderSource(path="m"), state=ModelState.REGISTERING,
        created_at=datetime.now(UTC), labels=network.labels, layers=network.layers,
        max_input_tokens=network.max_input_tokens,
    )  # fmt: skip
    job = services.registry.create_model(model, services.blobs.put(b"{}\n"))
    hashes = {
        "sha256": folders.weights_sha256(folder),
        "descriptions_sha256": folders.descriptions_sha256(folder),
    }
    ready = model.model_copy(update={"state": ModelState.READY, **hashes})
    services.registry.finish_registration(job.id, _claim(services, job.id), ready, [], {})
    draw = random.Random(0)
    texts = [TextInput(input=" ".join(draw.choices(WORDS, k=9))) for _ in range(num_edits)]
    layer = network.layers[-1]
    return Bench(services, services.registry.get_model("m"), network, layer, texts)


def measure(bench: Bench, settings: Settings, rounds: int, progress: Progress) -> dict[str, float]:
    """Publish the versions and return all figures by name."""
    whole = _entries(bench)
    metric = bench.services.blobs.put(pack_metric(whole.scope.metric))
    progress(f"publishing one version with {len(bench.texts):,} edits, and a chain of as many versions")
    single = _publish(bench, (_stored(bench, whole, metric),), 0)
    chain: tuple[Delta, ...] = ()
    last = None
    for place in range(len(bench.texts)):
        chain = (*chain, _stored(bench, _one(whole, place), metric))
        last = _publish(bench, chain, last.number if last else 0)
        chain = last.deltas
        if not place % 100:
            progress(f"{place:,} versions")
    assert last is not None
    few, many = (_publish(bench, single.deltas, single.number, num) for num in (FEW, MANY))
    found: dict[str, float] = {}
    with TestClient(create_app(settings)) as client:
        progress("loading chains")
        found["chain_memory_over_factors"] = _memory(client, single, last, whole)
        progress(f"{rounds} rounds of /predict")
        of_chain, of_single = _paired(client, bench, (last, single), rounds)
        ratios = [one / other for one, other in zip(of_chain, of_single, strict=True)]
        found["chain_over_single"] = round(median(ratios), 3)
        progress(f"chain {median(of_chain) * 1e3:.1f} ms, single {median(of_single) * 1e3:.1f} ms")
        of_many, of_few = _paired(client, bench, (many, few), rounds)
        differences = [one - other for one, other in zip(of_many, of_few, strict=True)]
        found["outcomes_ms"] = round(1e3 * median(differences), 2)
        progress("polling and sweeping")
        found["poll_kb"] = round(_poll_bytes(client, bench) / 1024, 1)
    services = bench.services
    reconciler = Reconciler(settings, services.registry, services.queue, services.blobs)
    began = time.perf_counter()
    reconciler.sweep()
    found["sweep_s"] = round(time.perf_counter() - began, 3)
    return found


def _entries(bench: Bench) -> Scoped:
    """One entry per text, with the text's features as its key and a random metric of the default width."""
    network, texts, layer = bench.network, bench.texts, bench.layer
    draw = torch.Generator().manual_seed(1)
    spec = FeatureSpec(layer.stack, BLOCKS // 2, False, token_rarity(network, texts))
    pooled = features(network, texts, spec)  # [e, f]
    projection = torch.randn(METRIC_WIDTH, pooled.shape[1], generator=draw)
    metric = named(
        Metric(spec, pooled.mean(0), pooled.std(0) + 1e-2, projection, *torch.ones(2, WORD_BUCKETS))
    )
    e = len(texts)
    scope = StateScope(
        metric, metric.project(pooled), torch.full((e,), 0.95), torch.arange(e).float(),
        **vars(first_tokens(network, texts)), first_token_weights=torch.full((e,), 0.2),
        words=pack_words([WordCounts.of(text) for text in texts]), lexical_weights=torch.full((e,), 0.1),
    )  # fmt: skip
    values = torch.randn(e, 1, layer.d_out, generator=draw)
    return Scoped(scope, values, torch.zeros(e, 0, layer.d_in), torch.zeros(e, 0, layer.d_out))


def _one(whole: Scoped, place: int) -> Scoped:
    """The part of the term that belongs to one entry."""
    row = torch.tensor([place])
    key_fields = {name: getattr(whole.scope, name)[row] for name in KEY_FIELDS}
    scope = replace(whole.scope, **key_fields, owners=torch.zeros(1))
    return Scoped(scope, whole.values[row], whole.down[row], whole.up[row])


def _stored(bench: Bench, term: Scoped, metric: str) -> Delta:
    data = pack(LayerDelta(bench.layer.path, (term,)), base_sha256=str(bench.model.sha256))
    blob = bench.services.blobs.put(data)
    return Delta(
        layer=bench.layer.path, blob=blob, num_bytes=len(data), kind="scoped", rank=None, metric=metric
    )


def _claim(services: Services, job_id: str) -> str:
    claimed = services.registry.jobs.claim(job_id, LEASE_S)
    assert claimed is not None, "no other process claims jobs"
    return claimed[1]


def _publish(bench: Bench, deltas: tuple[Delta, ...], parent: int, num_outcomes: int = 1) -> Version:
    """Publish a version as an edit job does, with this many outcomes."""
    registry = bench.services.registry
    job, _ = registry.jobs.create(JobKind.EDIT, "m", _request(bench, 1))
    share = Proportion(value=1.0, low=0.9, high=1.0, count=num_outcomes)
    outcome = EditOutcome(
        input=bench.texts[0].input, target=LABELS[0], edit=0, kind="edit", before=LABELS[1], after=LABELS[0],
        correct=True,
    )  # fmt: skip
    metrics = Metrics(
        edit_accuracy=share, adapt_accuracy=None, generalization=None, drawdown=None, locality=None,
        protocol="argmax",
    )  # fmt: skip
    version = Version(
        model="m", number=0, parent=parent, deltas=deltas, metrics=metrics,
        options=OPTIONS, layer=bench.layer.path, job_id=job.id,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    made = Publication(outcomes=(outcome,) * num_outcomes)
    return registry.finish_edit(job.id, _claim(bench.services, job.id), version, {}, made)


def _request(bench: Bench, num_edits: int) -> dict[str, Any]:
    edits = tuple(Edit(input=text.input, target=LABELS[0]) for text in bench.texts[:num_edits])
    return EditRequest(model="m", parent=0, edits=edits, options=OPTIONS).model_dump(mode="json")


def _paired(client: TestClient, bench: Bench, versions: Sequence[Version], rounds: int) -> list[list[float]]:
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


def _predict(client: TestClient, reference: str, inputs: Sequence[str]) -> None:
    body = {"model": reference, "inputs": [{"input": text} for text in inputs]}
    client.post("/predict", json=body).raise_for_status()


def _memory(client: TestClient, single: Version, last: Version, whole: Scoped) -> float:
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


def _resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _poll_bytes(client: TestClient, bench: Bench) -> int:
    job, _ = bench.services.registry.jobs.create(JobKind.EDIT, "m", _request(bench, len(bench.texts)))
    return len(client.get(f"/jobs/{job.id}").raise_for_status().content)


if __name__ == "__main__":
    sys.exit(exit_status(main))
