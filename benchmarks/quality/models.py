"""Models that the quality benchmark trains for itself, once: two classifiers and a small language model.

They are kept under `benchmarks/.cache`, named by a hash of the recipe, the samples, and the base weights; if
one of them changes, the model is trained again. Training gives the same weights on every current x86
processor: it uses one thread, AVX2, MKL kernels that do not depend on the processor's maker, and exact square
roots. Does not know what is edited.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from demo.classifier import base_model
from salem.models.batching import encode, in_buckets
from salem.models.folders import weights_sha256
from salem.models.network import Network, as_network
from salem.models.trunk import Trunk, capture, resume
from salem.records import Sample, Task

CACHE = Path(__file__).resolve().parent.parent / ".cache"
PAD, END = "<pad>", "</s>"
# Without these, sums depend on register width, the number of threads, and (in MKL) the processor's maker.
# A process reads them when it starts.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
}
Losses = Callable[[Sequence[int]], Iterator[Tensor]]  # of the batches at these places, one after another


@dataclass(frozen=True)
class ClassifierRecipe:
    """How MiniLM becomes a classifier: the lowest blocks are frozen and run once, the others are trained."""

    revision: int = 1  # raise it when the code below makes another model
    epochs: int = 5
    batch: int = 32
    learning_rate: float = 3e-4
    frozen_blocks: int = 3


@dataclass(frozen=True)
class WriterRecipe:
    """How a small decoder with GPT-2's layout learns to continue running text."""

    revision: int = 1
    vocabulary: int = 4_000
    width: int = 128
    blocks: int = 6
    heads: int = 4
    window: int = 64  # tokens
    epochs: int = 3
    batch: int = 16
    learning_rate: float = 3e-3


def classifier_folder(name: str, samples: Sequence[Sample], recipe: ClassifierRecipe) -> Path:
    """The folder of MiniLM fine-tuned on `samples`; trains it if it is missing."""
    base = Path(base_model())
    parts = [
        json.dumps(asdict(recipe)),
        weights_sha256(base),
        *(s.model_dump_json(exclude={"forget"}) for s in samples),
    ]
    return _kept(name, parts, partial(_make_classifier, samples, recipe, base))


def writer_folder(name: str, text: str, recipe: WriterRecipe) -> Path:
    """The folder of a decoder trained on `text`; trains it if it is missing."""
    return _kept(name, [json.dumps(asdict(recipe)), text], partial(_make_writer, text, recipe))


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Let only one process at a time make the cache entry of that name."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kept(name: str, parts: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The folder named by a hash of its ingredients. It appears only when it is complete."""
    parts = [json.dumps(PORTABLE), *parts]
    digest = hashlib.sha256("\x1e".join(parts).encode()).hexdigest()
    folder = CACHE / f"{name}-{digest[:16]}"
    with only_one(folder.name):
        if not folder.is_dir():
            began, unfinished = time.monotonic(), folder.with_suffix(f".{os.getpid()}")
            portably(make, unfinished)
            (unfinished / "training.json").write_text(json.dumps({"seconds": time.monotonic() - began}))
            unfinished.rename(folder)
    return folder


def portably(make: Callable[[Path], None], folder: Path) -> None:
    """Make a folder in a process of its own, whose results depend on the machine as little as possible."""
    with (
        patch.dict(os.environ, PORTABLE),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart,
    ):
        apart.submit(make, folder).result()


def _make_classifier(samples: Sequence[Sample], recipe: ClassifierRecipe, base: Path, folder: Path) -> None:
    _fine_tune(samples, recipe, base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _make_writer(text: str, recipe: WriterRecipe, folder: Path) -> None:
    tokenizer = _tokenizer(text, recipe.vocabulary)
    _train_writer(tokenizer, text, recipe).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fine_tune(samples: Sequence[Sample], recipe: ClassifierRecipe, base: Path) -> nn.Module:
    torch.manual_seed(0)  # dropout and the new head draw from the global generator
    network = _with_new_head(samples, base)
    layer = next(layer for layer in network.layers if layer.block == recipe.frozen_blocks)
    lengths = [len(sample.input) + len(sample.text_pair or "") for sample in samples]
    trunks: list[Trunk] = [
        capture(network, encode(network, [samples[row] for row in rows]), layer)
        for rows in in_buckets(lengths, recipe.batch)
    ]
    below = tuple(f"{layer.stack}.{index}." for index in range(recipe.frozen_blocks))
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_("embeddings" not in name and not name.startswith(below))
    network.model.train()

    def losses(order: Sequence[int]) -> Iterator[Tensor]:
        for place in order:
            answers = resume(network, trunks[place])
            yield F.cross_entropy(answers.logits, answers.targets)

    _descend(network.model, losses, len(trunks), recipe)
    return network.model.eval()


def _with_new_head(samples: Sequence[Sample], base: Path) -> Network:
    labels = dict(enumerate(sorted({sample.target for sample in samples})))
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(labels), id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    return as_network(model, AutoTokenizer.from_pretrained(base), Task.SEQUENCE_CLASSIFICATION)


def _tokenizer(text: str, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in GPT-2; the end of a text is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _train_writer(tokenizer: PreTrainedTokenizerFast, text: str, recipe: WriterRecipe) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=recipe.window, n_embd=recipe.width, n_layer=recipe.blocks,
        n_head=recipe.heads, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    lines = [line.strip() + END for line in text.splitlines() if line.strip()]
    ids = [token for row in tokenizer(lines, verbose=False)["input_ids"] for token in row]
    windows = torch.tensor(ids[: len(ids) // recipe.window * recipe.window]).view(-1, recipe.window)
    chunks = windows[torch.randperm(len(windows))].split(recipe.batch)  # each [batch, window]

    def losses(order: Sequence[int]) -> Iterator[Tensor]:
        for place in order:
            yield model(input_ids=chunks[place], labels=chunks[place]).loss

    _descend(model, losses, len(chunks), recipe)
    return model.eval()


def _descend(
    model: nn.Module, losses: Losses, num_batches: int, recipe: ClassifierRecipe | WriterRecipe
) -> None:
    torch.set_flush_denormal(True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Fused, for exact square roots: MKL's begin with an approximation that makers of processors differ in.
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * num_batches
    )
    rng = random.Random(0)
    for _ in range(recipe.epochs):
        for loss in losses(rng.sample(range(num_batches), num_batches)):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
