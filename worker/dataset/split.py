"""Makes the edit dataset of a job: what is trained on, and what is held out from it.

Pure functions on samples. Knows the rules of splitting; does not know models, tensors or storage.
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
    """Split a request into the parts that training sees and those that it never sees.

    Of every edit with two paraphrases or more, one is held out: that whose hash is the smallest, so that the
    same edit holds out the same one, whatever is beside it and by any seed. Pass samples given by the client
    are split by content hash like the reference set; without them the reference set serves. A pass sample
    whose input is also an edit's, white space aside, is left out on either side. Known paraphrases of
    reference samples come along, of those that are not held out.
    """
    adapt: list[tuple[int, Sample]] = []
    apart: list[tuple[int, Sample]] = []
    for index, edit in enumerate(edits):
        rewordings = list(edit.paraphrase_samples)
        if len(rewordings) >= 2:
            held = _held_out_of(rewordings)
            apart.append((index, held))
            rewordings = [sample for sample in rewordings if sample is not held]
        adapt.extend((index, sample) for sample in rewordings)
    touched = {sample.words_hash for edit in edits for sample in (edit.sample, *edit.paraphrase_samples)}
    kept = [sample for sample in _pool(reference, pass_samples) if sample[0].words_hash not in touched]
    training = [sample for sample, apart_from_training in kept if not apart_from_training]
    # By hash, so that adding or changing one sample leaves the others, whose trunks are cached, in order.
    training.sort(key=lambda sample: hashlib.sha256(f"{seed} {sample.content_hash}".encode()).digest())
    return EditBatch(
        edit_samples=tuple(edit.sample for edit in edits),
        adapt_samples=tuple(adapt),
        pass_samples=tuple(training[:max_pass_samples]),
        held_out_paraphrases=tuple(apart),
        held_out_pass_samples=tuple(sample for sample, is_held_out in kept if is_held_out)[:max_held_out],
        equivalents=tuple(_known_paraphrases(reference, touched)),
    )


def without_seen_paraphrases(
    batch: EditBatch, earlier: Iterable[Edit], taught: Sequence[ReferenceSample] = ()
) -> EditBatch:
    """The batch without those held-out paraphrases that earlier jobs were trained on.

    Args:
        earlier: the edits of these jobs.
        taught: the reference set, where its known paraphrases were trained on.
    """
    seen = {text.words_hash for pair in _known_paraphrases(taught, frozenset()) for text in pair}
    for edit in earlier:
        rewordings = list(edit.paraphrase_samples)
        held = _held_out_of(rewordings) if len(rewordings) >= 2 else None
        seen |= {sample.words_hash for sample in (edit.sample, *rewordings) if sample is not held}
    left = tuple((i, sample) for i, sample in batch.held_out_paraphrases if sample.words_hash not in seen)
    num_seen = len(batch.held_out_paraphrases) - len(left)
    return batch.model_copy(update={"held_out_paraphrases": left, "num_seen": num_seen})


def _held_out_of(rewordings: Sequence[Sample]) -> Sample:
    return min(rewordings, key=lambda sample: sample.words_hash)


def _known_paraphrases(
    reference: Sequence[ReferenceSample], touched: Set[str]
) -> Iterator[tuple[TextInput, TextInput]]:
    """Each reference sample with each of its paraphrases; none of either that an edit touches."""
    for item in reference:
        if item.held_out or item.sample.words_hash in touched:
            continue
        for text in item.paraphrases:
            paraphrase = TextInput(input=text, text_pair=item.sample.text_pair)
            if paraphrase.words_hash not in touched and not held_out(paraphrase.content_hash):
                yield item.sample, paraphrase


def _pool(reference: Sequence[ReferenceSample], given: Sequence[Sample] | None) -> list[tuple[Sample, bool]]:
    """Candidates for pass samples, each with whether it is held out; one that is repeated counts once."""
    if given is not None:
        pool = [(sample, held_out(sample.content_hash)) for sample in given]
    else:
        pool = [(item.sample, item.held_out) for item in reference if item.passes]
    first: dict[str, tuple[Sample, bool]] = {}
    for sample, is_held_out in pool:
        first.setdefault(sample.words_hash, (sample, is_held_out))
    return list(first.values())
