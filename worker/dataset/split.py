"""Builds the edit dataset of a job: what is trained on, and what is held out.

Pure functions on samples. Must not know models, tensors, or storage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence, Set

from salem.records import Edit, EditBatch, ReferenceSample, Sample, TextInput, held_out


def build_edit_batch(
    edits: Sequence[Edit],
    reference: Sequence[ReferenceSample],
    pass_samples: Sequence[Sample] | None,
    *,
    max_pass_samples: int,
    max_held_out: int,
    seed: int,
) -> EditBatch:
    """Split a request into the parts that training sees and the parts that it never sees.

    Each edit with two or more paraphrases holds out the one with the smallest hash, so an edit always holds
    out the same one. The pass samples of the request, or else the reference set, are split by content hash.
    Pass samples whose input equals an edit's (ignoring white space) are left out of both parts. Known
    paraphrases of reference samples are included unless they are held out.
    """
    adapt: list[tuple[int, Sample]] = []
    held_out_paraphrases: list[tuple[int, Sample]] = []
    for index, edit in enumerate(edits):
        paraphrases = list(edit.paraphrase_samples)
        if len(paraphrases) >= 2:
            held = _held_out_of(paraphrases)
            held_out_paraphrases.append((index, held))
            paraphrases = [sample for sample in paraphrases if sample is not held]
        adapt.extend((index, sample) for sample in paraphrases)
    touched = {sample.words_hash for edit in edits for sample in (edit.sample, *edit.paraphrase_samples)}
    kept = [sample for sample in _pool(reference, pass_samples) if sample[0].words_hash not in touched]
    training = [sample for sample, is_held_out in kept if not is_held_out]
    # By hash, so that adding or changing one sample leaves the others, whose trunks are cached, in order.
    training.sort(key=lambda sample: hashlib.sha256(f"{seed} {sample.content_hash}".encode()).digest())
    return EditBatch(
        edit_samples=tuple(edit.sample for edit in edits),
        adapt_samples=tuple(adapt),
        pass_samples=tuple(training[:max_pass_samples]),
        held_out_paraphrases=tuple(held_out_paraphrases),
        held_out_pass_samples=tuple(sample for sample, is_held_out in kept if is_held_out)[:max_held_out],
        equivalents=tuple(_known_paraphrases(reference, touched)),
    )


def without_seen_paraphrases(
    batch: EditBatch, earlier: Iterable[Edit], reference: Sequence[ReferenceSample] = ()
) -> EditBatch:
    """The batch without the held-out paraphrases that earlier jobs were trained on.

    Args:
        earlier: the edits of these jobs.
        reference: the reference set, if its known paraphrases were trained on.
    """
    seen = {text.words_hash for pair in _known_paraphrases(reference, frozenset()) for text in pair}
    for edit in earlier:
        paraphrases = list(edit.paraphrase_samples)
        held = _held_out_of(paraphrases) if len(paraphrases) >= 2 else None
        seen |= {sample.words_hash for sample in (edit.sample, *paraphrases) if sample is not held}
    left = tuple((i, sample) for i, sample in batch.held_out_paraphrases if sample.words_hash not in seen)
    num_seen = len(batch.held_out_paraphrases) - len(left)
    return batch.model_copy(update={"held_out_paraphrases": left, "num_seen": num_seen})


def _held_out_of(paraphrases: Sequence[Sample]) -> Sample:
    return min(paraphrases, key=lambda sample: sample.words_hash)


def _known_paraphrases(
    reference: Sequence[ReferenceSample], touched: Set[str]
) -> Iterator[tuple[TextInput, TextInput]]:
    """Each reference sample with each of its paraphrases, except those that an edit touches."""
    for item in reference:
        if item.held_out or item.sample.words_hash in touched:
            continue
        for text in item.paraphrases:
            paraphrase = TextInput(input=text, text_pair=item.sample.text_pair)
            if paraphrase.words_hash not in touched and not held_out(paraphrase.content_hash):
                yield item.sample, paraphrase


def _pool(reference: Sequence[ReferenceSample], given: Sequence[Sample] | None) -> list[tuple[Sample, bool]]:
    """Candidates for pass samples without duplicates, each with whether it is held out."""
    if given is not None:
        pool = [(sample, held_out(sample.content_hash)) for sample in given]
    else:
        pool = [(item.sample, item.held_out) for item in reference if item.passes]
    first: dict[str, tuple[Sample, bool]] = {}
    for sample, is_held_out in pool:
        first.setdefault(sample.words_hash, (sample, is_held_out))
    return list(first.values())
