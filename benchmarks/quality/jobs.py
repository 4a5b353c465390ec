"""Draws a job from a material: the edits, the samples that training may see, and the held-out samples.

The text of a correction decides, for all seeds, whether it is used to search hyperparameters, to train
methods ahead of time (the corpus), or to measure. These parts never mix. Pure functions; knows neither models
nor methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quality.data import Material
from benchmarks.quality.facts import Correction
from salem.records import Edit, EditBatch, Sample, TextInput

VALIDATION_SHARE = 0.06  # of the corrections
CORPUS_SHARE = 0.24
MAX_CORPUS = 1_000
KEPT_VALIDATION_SHARE = 0.15  # of the samples that the base answers correctly
HELD_OUT_SHARE = 0.45
VALIDATION_SEED = 1_000_003  # draws the validation jobs


@dataclass(frozen=True)
class Sizes:
    """How many samples a job uses, if its material has that many."""

    held_out: int = 1_000
    validation_held_out: int = 400
    pass_samples: int = 2_000


@dataclass(frozen=True)
class DrawnJob:
    """An edit dataset and its held-out samples."""

    material: Material
    corrections: tuple[Correction, ...]
    pass_samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    corpus: tuple[Edit, ...]

    def batch(self) -> EditBatch:
        """The training samples; held-out fields are empty."""
        edits = [item.edit for item in self.corrections]
        return EditBatch(
            edit_samples=tuple(edit.sample for edit in edits),
            adapt_samples=tuple((i, s) for i, edit in enumerate(edits) for s in edit.paraphrase_samples),
            pass_samples=self.pass_samples,
            held_out_paraphrases=(),
            held_out_pass_samples=(),
        )


def measured_pool(material: Material, num_edits: int) -> list[Correction]:
    """The corrections that measured jobs draw from: the hard ones, or all if those are too few."""
    hard = _part(material.corrections[: material.num_hard], VALIDATION_SHARE + CORPUS_SHARE, 1.0)
    if len(hard) >= num_edits:
        return hard
    return _part(material.corrections, VALIDATION_SHARE + CORPUS_SHARE, 1.0)


def draw_job(material: Material, num_edits: int, seed: int, sizes: Sizes) -> DrawnJob:
    """A measured job."""
    pool = measured_pool(material, num_edits)
    drawn = random.Random(seed).sample(pool, min(num_edits, len(pool)))
    _, rest = _split_kept(material, sizes)
    return _apart(material, drawn, rest, random.Random(seed), sizes)


def draw_validation_job(material: Material, num_edits: int, sizes: Sizes) -> DrawnJob:
    """The job of the hyperparameter search: none of its edits or held-out samples is measured later."""
    rng = random.Random(VALIDATION_SEED)
    pool = _part(material.corrections[: material.num_hard], 0.0, VALIDATION_SHARE)
    drawn = rng.sample(pool, min(num_edits, len(pool)))
    held_out, rest = _split_kept(material, sizes)
    touched = _texts(drawn) | _corpus_texts(_corpus(material))
    held_out = [sample for sample in held_out if sample.content_hash not in touched]
    job = _apart(material, drawn, rest, rng, sizes)
    return DrawnJob(material, job.corrections, job.pass_samples, tuple(held_out), job.corpus)


def slices(samples: Sequence[Sample], share: float, num_slices: int) -> list[tuple[Sample, ...]]:
    """`num_slices` consecutive slices with `share` of the samples each; the first sample follows the last."""
    size = max(1, round(share * len(samples)))
    places = [[(start * size + step) % len(samples) for step in range(size)] for start in range(num_slices)]
    return [tuple(samples[place] for place in row) for row in places]


def _apart(
    material: Material,
    drawn: Sequence[Correction],
    rest: Sequence[Sample],
    rng: random.Random,
    sizes: Sizes,
) -> DrawnJob:
    """Split the remaining kept samples; no held-out sample occurs in an edit or in the corpus."""
    corpus = _corpus(material)
    touched, in_corpus = _texts(drawn), _corpus_texts(corpus)
    free = [sample for sample in rest if sample.content_hash not in touched]
    rng.shuffle(free)
    unseen = [sample for sample in free if sample.content_hash not in in_corpus]
    held_out = unseen[: min(sizes.held_out, round(HELD_OUT_SHARE * len(free)))]
    if material.perplexity:
        held_out = unseen[: sizes.held_out]
    hidden = {sample.content_hash for sample in held_out}
    training = [sample for sample in free if sample.content_hash not in hidden]
    if material.training_passages:
        training = rng.sample(
            material.training_passages, min(sizes.pass_samples, len(material.training_passages))
        )
    return DrawnJob(material, tuple(drawn), tuple(training[: sizes.pass_samples]), tuple(held_out), corpus)


def _split_kept(material: Material, sizes: Sizes) -> tuple[list[Sample], list[Sample]]:
    """(validation, rest) of the samples that the base answers correctly; the same for every job."""
    kept = list(material.kept)
    random.Random(VALIDATION_SEED).shuffle(kept)
    num_validation = min(sizes.validation_held_out, round(KEPT_VALIDATION_SHARE * len(kept)))
    return kept[:num_validation], kept[num_validation:]


def _corpus(material: Material) -> tuple[Edit, ...]:
    """Edits that are never measured. Their held-out paraphrases are not held out here."""
    part = _part(material.corrections, VALIDATION_SHARE, VALIDATION_SHARE + CORPUS_SHARE)[:MAX_CORPUS]
    return tuple(
        item.edit.model_copy(
            update={"paraphrases": item.edit.paraphrases or tuple(s.input for s in item.held_out_paraphrases)}
        )
        for item in part
    )


def _part(corrections: Sequence[Correction], low: float, high: float) -> list[Correction]:
    return [c for c in corrections if low <= int(c.edit.content_hash[:8], 16) / 2**32 < high]


def _texts(corrections: Sequence[Correction]) -> set[str]:
    """Every text that trains or measures a correction, or that it makes wrong."""
    texts: list[TextInput] = []
    for item in corrections:
        texts += [item.edit, *item.edit.paraphrase_samples]
        texts += [*item.held_out_paraphrases, *item.neighbors, *item.portability, *item.restatements]
    return {text.content_hash for text in texts}


def _corpus_texts(corpus: Sequence[Edit]) -> set[str]:
    return {text.content_hash for edit in corpus for text in (edit, *edit.paraphrase_samples)}
