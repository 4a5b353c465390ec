"""A service with one hosted model of random weights, and versions published as an edit job does.

Files, database rows, and blobs are real. Must not know what is measured.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from app.api.services import Services
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
from salem.settings import Settings
from salem.storage.publication import Publication

OPTIONS = RecipeOptions(recipe="scoped")
WIDTH, BLOCKS, LABELS = 384, 6, ("delivery", "refund", "login", "other")
WORDS = [f"{a}{b}{c}" for a in "bdfgkl" for b in ("an", "el", "or", "ut") for c in "aeiostmnpr"]
LEASE_S = 600.0


@dataclass(frozen=True)
class Bench:
    """A service with one hosted model, and the texts of its edits."""

    services: Services
    model: HostedModel
    network: Network
    layer: Layer
    texts: list[TextInput]


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


def publish(bench: Bench, deltas: tuple[Delta, ...], parent: int, num_outcomes: int = 1) -> Version:
    """Publish a version as an edit job does, with this many outcomes."""
    registry = bench.services.registry
    job, _ = registry.jobs.create(JobKind.EDIT, "m", edit_request(bench, 1))
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


def edit_request(bench: Bench, num_edits: int) -> dict[str, Any]:
    """The stored request of a job with this many edits."""
    edits = tuple(Edit(input=text.input, target=LABELS[0]) for text in bench.texts[:num_edits])
    return EditRequest(model="m", parent=0, edits=edits, options=OPTIONS).model_dump(mode="json")


def _claim(services: Services, job_id: str) -> str:
    claimed = services.registry.jobs.claim(job_id, LEASE_S)
    assert claimed is not None, "no other process claims jobs"
    return claimed[1]
