"""Draws a job from a material: what is edited, what training may see, and what is held out, by a seed.

Parts that are never mixed: a correction belongs by its text, once and for ever, to the validation of
hyperparameters, to the corpus of methods trained ahead, or to the measured ones. Pure functions; knows
neither models nor methods.
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
KEPT_VALIDATION_SHARE = 0.15  # of what the base answers rightly
HELD_OUT_SHARE = 0.45
VALIDATION_SEED = 1_000_003  # of the draws of validation jobs


@dataclass(frozen=True)
class Sizes:
    """How many samples a job takes where its material has them."""

    held_out: int = 1_000
    validation_held_out: int = 400
    pass_samples: int = 2_000


@dataclass(frozen=True)
class DrawnJob:
    """An edit dataset with its held-out side apart."""

    material: Material
    corrections: tuple[Correction, ...]
    pass_samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    corpus: tuple[Edit, ...]

    def batch(self, start: int = 0, stop: int | None = None) -> EditBatch:
        """The training side of the corrections from `start` to `stop`: held-out fields are empty."""
        edits = [item.edit for item in self.corrections[start:stop]]
        return EditBatch(
            edit_samples=tuple(edit.sample for edit in edits),
            adapt_samples=tuple((i, s) for i, edit in enumerate(edits) for s in edit.paraphrase_samples),
            pass_samples=self.pass_samples,
            held_out_paraphrases=(),
            held_out_pass_samples=(),
        )


def measured_pool(material: Material, num_edits: int) -> list[Correction]:
    """The corrections that measured jobs of a size draw from: the hardest half, or all where a job asks for
    more than that half has.
    """
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
    """The job that hyperparameters are chosen on: no edit and no held-out sample of it is measured later."""
    rng = random.Random(VALIDATION_SEED)
    pool = _part(material.corrections[: material.num_hard], 0.0, VALIDATION_SHARE)
    drawn = rng.sample(pool, min(num_edits, len(pool)))
    held_out, rest = _split_kept(material, sizes)
    touched = _asked(drawn) | _corpus_texts(_corpus(material))
    held_out = [sample for sample in held_out if sample.content_hash not in touched]
    job = _apart(material, drawn, rest, rng, sizes)
    return DrawnJob(material, job.corrections, job.pass_samples, tuple(held_out), job.corpus)


def slices(samples: Sequence[Sample], share: float, num_slices: int) -> list[tuple[Sample, ...]]:
    """`num_slices` runs through the samples, each of `share` of them, one after another and round again."""
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
    """Split what is left of the kept samples: nothing held out was touched by an edit or by the corpus."""
    corpus = _corpus(material)
    asked, studied = _asked(drawn), _corpus_texts(corpus)
    free = [sample for sample in rest if sample.content_hash not in asked]
    rng.shuffle(free)
    unseen = [sample for sample in free if sample.content_hash not in studied]
    held_out = unseen[: min(sizes.held_out, round(HELD_OUT_SHARE * len(free)))]
    if material.perplexity:
        held_out = unseen[: sizes.held_out]
    hidden = {sample.content_hash for sample in held_out}
    training = [sample for sample in free if sample.content_hash not in hidden]
    if material.studied:
        training = rng.sample(material.studied, min(sizes.pass_samples, len(material.studied)))
    return DrawnJob(material, tuple(drawn), tuple(training[: sizes.pass_samples]), tuple(held_out), corpus)


def _split_kept(material: Material, sizes: Sizes) -> tuple[list[Sample], list[Sample]]:
    """(validation, rest) of what the base answers rightly, the same for every job."""
    kept = list(material.kept)
    random.Random(VALIDATION_SEED).shuffle(kept)
    num_validation = min(sizes.validation_held_out, round(KEPT_VALIDATION_SHARE * len(kept)))
    return kept[:num_validation], kept[num_validation:]


def _corpus(material: Material) -> tuple[Edit, ...]:
    """Edits that are never measured; where their rewordings were to be held out, here they are not."""
    part = _part(material.corrections, VALIDATION_SHARE, VALIDATION_SHARE + CORPUS_SHARE)[:MAX_CORPUS]
    return tuple(
        item.edit.model_copy(
            update={"paraphrases": item.edit.paraphrases or tuple(s.input for s in item.reworded)}
        )
        for item in part
    )


def _part(corrections: Sequence[Correction], low: float, high: float) -> list[Correction]:
    return [c for c in corrections if low <= int(c.edit.content_hash[:8], 16) / 2**32 < high]


def _asked(corrections: Sequence[Correction]) -> set[str]:
    """Every text that a correction is trained on or measured by, or that it makes wrong."""
    texts: list[TextInput] = []
    for item in corrections:
        texts += [item.edit, *item.edit.paraphrase_samples]
        texts += [*item.reworded, *item.neighborhood, *item.portability, *item.restated]
    return {text.content_hash for text in texts}


def _corpus_texts(corpus: Sequence[Edit]) -> set[str]:
    return {text.content_hash for edit in corpus for text in (edit, *edit.paraphrase_samples)}
