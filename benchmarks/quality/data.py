"""The materials of the quality benchmark: a model, samples that it answers correctly, and corrections.

There are six data sets; the facts have models of two architectures. The base model is asked once, and its
answers are cached. Knows data sets and answers; does not know methods, or how a job draws from a material.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.quality import models, passages
from benchmarks.quality.facts import MAX_NEW_TOKENS, Correction, Made, corrections_of_facts
from benchmarks.quality.models import ClassifierRecipe, WriterRecipe, classifier_folder, writer_folder
from benchmarks.shared_data import (
    banking_parts,
    fever_parts,
    shared_folder,
    shared_model,
    shared_rows,
    shared_samples,
    text_parts,
)
from salem.inference.predict import predict, same_answer
from salem.models.folders import weights_sha256
from salem.models.loading import load
from salem.models.network import Network
from salem.records import Edit, Record, Sample, Task
from worker.dataset.augmentation import augment

REVISION = 4  # raise it when the code below changes what a material holds
NUM_AUGMENTED = 2  # augmentations to adapt to, and as many held out
WORDS_KEPT = 0.75  # of an original, at least: a rule may drop half of a text, and its meaning with it

_CLASSIFIER, _TRANSLATOR, _WRITER = (
    Task.SEQUENCE_CLASSIFICATION,
    Task.TEXT2TEXT_GENERATION,
    Task.TEXT_GENERATION,
)


class Material(Record):
    """Everything that the jobs of one data set draw from."""

    name: str
    task: Task
    folder: str
    model_sha256: str
    paraphrase_source: Literal["rules", "human"]
    perplexity: bool  # whether drawdown is a rise of perplexity instead of a loss of correct answers
    corrections: tuple[Correction, ...]  # hardest first
    num_hard: int  # this many corrections come first: the base is most confident of its wrong answer
    kept: tuple[Sample, ...]  # samples that the base answers correctly, or passages with `perplexity`
    training_passages: tuple[Sample, ...] = ()  # for training only
    accuracy: float | None = None  # of the base on the reference set


@dataclass(frozen=True)
class _Source:
    task: Task
    files: tuple[str, ...]  # under data/
    model: Callable[[], Path]
    build: Callable[[Network, int | None], Made]
    paraphrase_source: Literal["rules", "human"] = "rules"
    perplexity: bool = False


def material(name: str, limit: int | None = None) -> Material:
    """The material of a data set; uses at most `limit` reference samples and `limit` edits."""
    source = _SOURCES[name]
    model = source.model()
    sha256 = weights_sha256(model)
    files = [
        hashlib.sha256((shared_folder() / "data" / file).read_bytes()).hexdigest() for file in source.files
    ]
    digest = hashlib.sha256(repr((name, REVISION, limit, sha256, files)).encode()).hexdigest()
    path = models.CACHE / f"material-{name}-{digest[:16]}.json"
    with models.only_one(path.stem):
        if not path.is_file():
            network = load(model, source.task, device="cpu")
            found = Material(
                name=name, task=source.task, folder=str(model), model_sha256=sha256,
                paraphrase_source=source.paraphrase_source, perplexity=source.perplexity,
                **vars(source.build(network, limit)),
            )  # fmt: skip
            path.with_suffix(".part").write_text(found.model_dump_json())
            path.with_suffix(".part").rename(path)
    # The cached file may name another folder.
    return Material.model_validate_json(path.read_text()).model_copy(update={"folder": str(model)})


def corrections_of_errors(network: Network, reference: Sequence[Sample]) -> Made:
    """A classifier's errors, the most confident first, with augmentations as paraphrases."""
    answers = predict(network, reference)
    pairs = list(zip(reference, answers, strict=True))
    kept = tuple(sample for sample, answer in pairs if same_answer(answer.output, sample.target))
    wrong = [
        (max((answer.scores or {}).values()), sample)
        for sample, answer in pairs
        if not same_answer(answer.output, sample.target)
    ]
    ranked = [sample for _, sample in sorted(wrong, key=lambda item: -item[0])]
    corrections = tuple(_with_augmentations(sample) for sample in ranked)
    return Made(corrections, len(corrections) // 2, kept, accuracy=len(kept) / len(reference))


def _with_augmentations(sample: Sample) -> Correction:
    rng = random.Random(sample.content_hash)
    texts: list[str] = []
    for _ in range(60):
        text = augment(sample, rng).input
        whole = len(text.split()) >= WORDS_KEPT * len(sample.input.split())
        if whole and text not in (sample.input, *texts):
            texts.append(text)
        if len(texts) == 2 * NUM_AUGMENTED:
            break
    edit = Edit(**sample.model_dump(), paraphrases=tuple(texts[:NUM_AUGMENTED]))
    held_out = tuple(sample.model_copy(update={"input": text}) for text in texts[NUM_AUGMENTED:])
    return Correction(edit=edit, held_out_paraphrases=held_out)


def _distinct(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Each input once, shuffled."""
    found = list({sample.content_hash: sample for sample in samples}.values())
    random.Random(0).shuffle(found)
    return found[:limit]


def _passages(network: Network, limit: int | None) -> Made:
    training, rest = text_parts()
    edited, kept = passages.halves(passages.passages(network, rest, limit))
    corrections = [
        Correction(edit=Edit(**sample.model_dump()), held_out_paraphrases=(passages.shortened(sample),))
        for sample in passages.completions(network, edited)
    ]
    before = predict(network, [item.edit for item in corrections], max_new_tokens=MAX_NEW_TOKENS)
    pairs = zip(corrections, before, strict=True)
    wrong = tuple(item for item, answer in pairs if not same_answer(answer.output, item.edit.target))
    return Made(wrong, len(wrong), tuple(kept), tuple(passages.passages(network, training, limit)))


def _facts(model: str) -> _Source:
    return _Source(
        task=_WRITER,
        files=("facts.jsonl", "facts_edits.jsonl"),
        model=lambda: shared_model(model),
        build=lambda network, limit: corrections_of_facts(
            network, _distinct(shared_samples("facts"), limit), shared_rows("facts_edits")[:limit]
        ),
        paraphrase_source="human",
    )


_SOURCES: dict[str, _Source] = {
    "nli": _Source(
        task=_CLASSIFIER,
        files=("nli_test.jsonl",),
        model=lambda: shared_model("minilm-nli"),
        build=lambda network, limit: corrections_of_errors(
            network, _distinct(shared_samples("nli_test"), limit)
        ),
    ),
    "fever": _Source(
        task=_CLASSIFIER,
        files=("fever_symmetric.jsonl",),
        model=lambda: classifier_folder("fever", fever_parts()[0], ClassifierRecipe()),
        build=lambda network, limit: corrections_of_errors(network, _distinct(fever_parts()[1], limit)),
    ),
    "banking77": _Source(
        task=_CLASSIFIER,
        files=("banking77_train.jsonl", "banking77_test.jsonl"),
        model=lambda: classifier_folder("banking77", banking_parts()[0], ClassifierRecipe(epochs=4)),
        build=lambda network, limit: corrections_of_errors(network, _distinct(banking_parts()[1], limit)),
    ),
    "questions": _Source(
        task=_TRANSLATOR,
        files=("questions.jsonl", "questions_edits.jsonl"),
        model=lambda: shared_model("t5-questions"),
        build=lambda network, limit: corrections_of_facts(
            network,
            _distinct(shared_samples("questions"), limit),
            shared_rows("questions_edits")[:limit],
            restates=True,
        ),
        paraphrase_source="human",
    ),
    "gpt-facts": _facts("gpt-facts"),
    "llama-facts": _facts("llama-facts"),
    "wikitext": _Source(
        task=_WRITER,
        files=("wikitext2_valid.txt",),
        model=lambda: writer_folder("wikitext", text_parts()[0], WriterRecipe()),
        build=_passages,
        perplexity=True,
    ),
}
DATASETS = tuple(_SOURCES)
