"""The models and data sets that benchmarks edit, in the folder `SALEM_SHARED` (default: ../shared).

They are not part of the project. Knows their file formats; must not know methods.
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

BANKING_TRAINING = 3_000  # sentences
FEVER_TRAINING_SHARE = 0.4  # of the evidence sentences
TEXT_SHARE = 0.8  # of the running text


@dataclass(frozen=True)
class EditSet:
    """A model, a labeled reference set, and edits."""

    name: str
    model: Path
    task: Task
    reference: tuple[Edit, ...]  # labeled samples
    edits: tuple[Edit, ...]  # empty: the model's errors are the edits


def shared_folder() -> Path:
    """The folder of shared models and data.

    Raises:
        Misconfigured: the folder does not exist.
    """
    folder = Path(os.environ.get("SALEM_SHARED", "../shared"))
    if not ((folder / "models").is_dir() and (folder / "data").is_dir()):
        raise Misconfigured(
            f"The benchmark's models and data are not in {folder}: set SALEM_SHARED to the folder that holds "
            "models/ and data/."
        )
    return folder


def _shared_path(kind: str, name: str) -> Path:
    path = shared_folder() / kind / name
    if not path.exists():
        raise Misconfigured(f"The benchmark needs {path}, which does not exist: check SALEM_SHARED.")
    return path


def shared_rows(name: str) -> list[dict[str, Any]]:
    """The records of a data file."""
    text = _shared_path("data", f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def shared_samples(name: str) -> list[Sample]:
    """A data file of labeled samples: pairs with a label, texts with a label, or prompts with an answer."""
    return [_sample(row) for row in shared_rows(name)]


def shared_text(name: str) -> str:
    """A data file of running text."""
    return _shared_path("data", f"{name}.txt").read_text()


def shared_model(name: str) -> Path:
    """The folder of a model."""
    return _shared_path("models", name)


def fever_parts() -> tuple[list[Sample], list[Sample]]:
    """(training, reference) of FEVER-symmetric, split by evidence: no sentence is in both."""
    samples = shared_samples("fever_symmetric")
    evidence = sorted({sample.input for sample in samples})
    random.Random(0).shuffle(evidence)
    studied = set(evidence[: int(FEVER_TRAINING_SHARE * len(evidence))])
    training = [sample for sample in samples if sample.input in studied]
    return training, [sample for sample in samples if sample.input not in studied]


def banking_parts() -> tuple[list[Sample], list[Sample]]:
    """(training, reference) of banking77: the model is trained on a part of the training file only."""
    samples = shared_samples("banking77_train")
    random.Random(0).shuffle(samples)
    return samples[:BANKING_TRAINING], samples[BANKING_TRAINING:] + shared_samples("banking77_test")


def text_parts() -> tuple[str, str]:
    """(training, rest) of WikiText-2's validation text, cut between two lines."""
    lines = shared_text("wikitext2_valid").splitlines()
    cut = int(TEXT_SHARE * len(lines))
    return "\n".join(lines[:cut]), "\n".join(lines[cut:])


def edit_set(name: str, num_reference: int, seed: int) -> EditSet:
    """One of `SETS`; `seed` draws its `num_reference` reference samples."""
    task, model, reference, edits = SETS[name]
    rng = random.Random(seed)
    samples = shared_samples(reference)
    rng.shuffle(samples)
    corrections = [_edit(row) for row in shared_rows(edits)] if edits else []
    rng.shuffle(corrections)
    drawn = tuple(Edit(**sample.model_dump()) for sample in samples[:num_reference])
    return EditSet(name, shared_model(model), task, drawn, tuple(corrections))


SETS: dict[str, tuple[Task, str, str, str | None]] = {
    "nli": (Task.SEQUENCE_CLASSIFICATION, "minilm-nli", "nli_test", None),
    "questions": (Task.TEXT2TEXT_GENERATION, "t5-questions", "questions", "questions_edits"),
    "gpt-facts": (Task.TEXT_GENERATION, "gpt-facts", "facts", "facts_edits"),
    "llama-facts": (Task.TEXT_GENERATION, "llama-facts", "facts", "facts_edits"),
}


def _sample(row: dict[str, Any]) -> Sample:
    if "premise" in row:
        return Sample(input=row["premise"], text_pair=row["hypothesis"], target=row["label"])
    if "text" in row:
        return Sample(input=row["text"], target=row["label"])
    return Sample(input=row["prompt"], target=row["answer"])


def _edit(row: dict[str, Any]) -> Edit:
    return Edit(input=row["prompt"], target=row["target"], paraphrases=tuple(row["paraphrases"]))
