"""Edits a deep model twice in its own process, streamed and in memory, and prints both peaks as JSON.

Usage: python peak_of_streaming.py FOLDER. FOLDER is empty; a classifier of 24 blocks with random weights is
saved there first. A peak is what the process held at most, mapped files included, over what it held before it
loaded: all is imported and one small model was edited by then, so that what a library takes at its first use
is not taken for the job's.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tiny_models import LABELS, save_tiny, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

from salem.deltas.terms import LowRank
from salem.inference.predict import predict
from salem.models.loading import load
from salem.records import Layer, Sample, Task
from worker.training.loop import prepare_dataset, train
from worker.training.options import TrainingOptions

WORDS = ("order", "parcel", "lamp", "password", "account", "refund", "door", "book")
OPTIONS = TrainingOptions(max_steps=4, kl_weight=0.1, learning_rate=1e-2)


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


def save_deep(folder: Path) -> int:
    """Write the deep model, and return the bytes of its weights."""
    config = BertConfig(
        vocab_size=200, hidden_size=512, intermediate_size=512, num_hidden_layers=24, num_attention_heads=8,
        max_position_embeddings=48, pad_token_id=0, id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tiny_tokenizer("pairs").save_pretrained(folder)
    return sum(weight.nbytes for weight in model.parameters())


def edited(folder: Path, block: int, *, streamed: bool) -> Tensor:
    """Load a model, correct four texts at a block, and return the change of its weight: [d_out, d_in]."""
    network = load(folder, Task.SEQUENCE_CLASSIFICATION, device="cpu", streamed=streamed)
    texts = [Sample(input=f"where is my {word}", target="x") for word in WORDS]
    answers = [prediction.output for prediction in predict(network, texts)]
    wrong = [LABELS[(LABELS.index(answer) + 1) % len(LABELS)] for answer in answers[:4]]
    samples = [
        Sample(input=text.input, target=target)
        for text, target in zip(texts, [*wrong, *answers[4:]], strict=True)
    ]
    layer = network.layers[block]
    prepared = prepare_dataset(network, samples[:4], samples[4:], layer)
    term, _ = train(network, prepared, Factors(layer), OPTIONS, torch.Generator().manual_seed(0))
    assert isinstance(term, LowRank)
    return term.dense()


def held_bytes(field: str) -> int:
    """A value from /proc/self/status: `VmRSS` is the memory held now, `VmHWM` the peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def measured(folder: Path, *, streamed: bool) -> tuple[int, Tensor]:
    """The peak of an edit of the deep model, in bytes, and the change that it made."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far begins anew
    before = held_bytes("VmRSS")
    delta = edited(folder, 16, streamed=streamed)
    return held_bytes("VmHWM") - before, delta


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    num_bytes = save_deep(root / "deep")
    edited(save_tiny(root / "small", "bert"), 1, streamed=True)
    streamed, found = measured(root / "deep", streamed=True)
    whole, expected = measured(root / "deep", streamed=False)
    figures = {"weights": num_bytes, "streamed": streamed, "whole": whole}
    error = float((found - expected).abs().max())
    print(json.dumps({**figures, "error": error, "size": float(expected.abs().max())}))


if __name__ == "__main__":
    main()
