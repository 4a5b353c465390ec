"""Reference sets for tiny models: short texts with the model's own answers, some wrong on purpose.

Random weights have no correct answers, so the model's own answers count as correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tiny_models import LABELS, save_tiny

from salem.inference.predict import predict
from salem.models import loading
from salem.records import Task, TextInput

_OPENINGS = ("where is my", "i want the", "please send the", "who wrote the", "when will the")
_THINGS = ("order", "parcel", "lamp", "password", "account", "book", "door", "money")
_ENDINGS = ("", " now", " today")
TEXTS = tuple(f"{start} {thing}{end}" for start, thing, end in product(_OPENINGS, _THINGS, _ENDINGS))


def own_answers(folder: Path, task: Task, texts: Sequence[str]) -> list[str]:
    """The answers of the saved model."""
    network = loading.load(folder, task, device="cpu")
    return [answer.output for answer in predict(network, [TextInput(input=text) for text in texts])]


def labeled(folder: Path, task: Task, num_wrong: int = 0) -> list[dict[str, Any]]:
    """`num_wrong` samples that the saved model answers wrongly, then samples that it answers correctly."""
    answers = own_answers(folder, task, TEXTS)
    samples = [
        {"input": text, "target": answer} for text, answer in zip(TEXTS, answers, strict=True) if answer
    ]
    for sample in samples[:num_wrong]:
        sample["target"] = other_label(sample["target"]) if not task.generates else "nothing of the kind"
    return samples


def other_label(label: str) -> str:
    """Another label."""
    return LABELS[(LABELS.index(label) + 1) % len(LABELS)]


def save_labeled(
    models_root: Path, name: str, architecture: str, task: Task, num_wrong: int = 0
) -> list[dict[str, Any]]:
    """Save a tiny model as `models_root`/`name`; its reference set."""
    return labeled(save_tiny(models_root / name, architecture, task), task, num_wrong)
