"""Trains one layer in its own process and prints the memory estimate and the real peak as JSON.

Usage: python peak_of_training.py tiny|FOLDER NUM_PASS NUM_WORDS. `tiny` is an encoder of four blocks of width
256 with random weights. The peak is counted from the moment when all is imported and one small model has been
run, so that what a library takes at its first use is not taken for the job's.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tiny_models import LABELS, build_network, tiny_tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from salem.deltas.terms import LowRank
from salem.inference.predict import predict
from salem.models.loading import load
from salem.models.network import Network, as_network
from salem.records import Layer, Sample, Task
from worker.attempts.machine_memory import resident_bytes
from worker.pipeline.budget import blocks_above, model_shape, token_counts
from worker.recipes.memory import Estimate, Training, inference_bytes, sample_bytes, step_bytes
from worker.training.loop import prepare_dataset, train
from worker.training.options import TrainingOptions

WORDS = ("where", "is", "my", "order", "and", "when", "will", "the", "parcel", "arrive", "at", "door")
OPTIONS = TrainingOptions(max_steps=3, kl_weight=0.1, learning_rate=1e-2)


class Factors:
    """The factors of an update."""

    shared = True

    def __init__(self, layer: Layer) -> None:
        self.a = nn.Parameter(torch.ones(4, layer.d_in) / layer.d_in)
        self.b = nn.Parameter(torch.zeros(layer.d_out, 4))

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter((self.a, self.b))

    def term(self) -> LowRank:
        return LowRank(self.a, self.b)


def wide_network() -> Network:
    config = BertConfig(
        vocab_size=20_000, hidden_size=256, intermediate_size=1_024, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=256, id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    return as_network(model, tiny_tokenizer("pairs"), Task.SEQUENCE_CLASSIFICATION)


def some_samples(count: int, num_words: int, labels: tuple[str, ...]) -> list[Sample]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=num_words)) for _ in range(count)]
    return [Sample(input=text, target=labels[0]) for text in texts]


def work(network: Network, layer: Layer, corrections: list[Sample], kept: list[Sample]) -> None:
    prepared = prepare_dataset(network, corrections, kept, layer)
    train(network, prepared, Factors(layer), OPTIONS, torch.Generator().manual_seed(0))
    predict(network, kept[:128])


def main() -> None:
    where, num_pass, num_words = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    small = build_network("bert")
    work(small, small.layers[1], some_samples(2, 3, LABELS), some_samples(10, 3, LABELS))
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of imports for instance, is forgotten
    network = (
        wide_network() if where == "tiny" else load(Path(where), Task.SEQUENCE_CLASSIFICATION, device="cpu")
    )
    layer = network.layers[len(network.layers) // 2]
    samples = some_samples(num_pass + 10, num_words, network.labels)
    shape = model_shape(network)
    own, kept = token_counts(network, samples[:10]), token_counts(network, samples[10:])
    training = Training(own, kept, blocks_above(network, layer), in_one_pass=len(own.tokens))
    found = Estimate(
        weights=shape.weight_bytes,
        samples=sample_bytes(shape, own + kept),
        step=step_bytes(shape, training),
        inference=inference_bytes(shape, max(kept.tokens)),
    )
    work(network, layer, samples[:10], samples[10:])
    (highest,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = int(highest) * 1024 - before
    print(json.dumps({"peak": peak, "estimate": found.num_bytes, "parts": vars(found)}))


if __name__ == "__main__":
    main()
