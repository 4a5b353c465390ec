"""The models and data sets that benchmarks edit: a folder beside the project, named by `SALEM_SHARED`.

They are not part of the project. Knows their file formats; does not know methods.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salem.errors import Misconfigured
from salem.records import Edit, Sample, Task


@dataclass(frozen=True)
class EditSet:
    """A model, labelled samples that it was asked, and what is to change."""

    name: str
    model: Path
    task: Task
    reference: tuple[Sample, ...]
    edits: tuple[Edit, ...]  # empty: the samples that the model fails are the edits


def shared_folder() -> Path:
    """The folder of shared models and data.

    Raises:
        Misconfigured: it is not there; says which variable names it.
    """
    folder = Path(os.environ.get("SALEM_SHARED", "../shared"))
    if not (folder / "models").is_dir():
        raise Misconfigured(
            "The benchmark's models and data were not found.",
            remedy="Set SALEM_SHARED to the folder that holds data/ and models/.",
        )
    return folder


def edit_set(name: str, num_reference: int, seed: int) -> EditSet:
    """One of `SETS`, with `num_reference` reference samples drawn by `seed`."""
    task, model, reference, edits = SETS[name]
    folder = shared_folder()
    rng = random.Random(seed)
    samples = [_sample(row) for row in _rows(folder, reference)]
    rng.shuffle(samples)
    corrections = [_edit(row) for row in _rows(folder, edits)] if edits else []
    rng.shuffle(corrections)
    return EditSet(name, folder / "models" / model, task, tuple(samples[:num_reference]), tuple(corrections))


SETS: dict[str, tuple[Task, str, str, str | None]] = {
    "nli": (Task.SEQUENCE_CLASSIFICATION, "minilm-nli", "nli_test", None),
    "questions": (Task.TEXT2TEXT_GENERATION, "t5-questions", "questions", "questions_edits"),
    "gpt-facts": (Task.TEXT_GENERATION, "gpt-facts", "facts", "facts_edits"),
    "llama-facts": (Task.TEXT_GENERATION, "llama-facts", "facts", "facts_edits"),
}


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def _sample(row: dict[str, Any]) -> Sample:
    if "premise" in row:
        return Sample(input=row["premise"], text_pair=row["hypothesis"], target=row["label"])
    return Sample(input=row["prompt"], target=row["answer"])


def _edit(row: dict[str, Any]) -> Edit:
    return Edit(input=row["prompt"], target=row["target"], paraphrases=tuple(row["paraphrases"]))
