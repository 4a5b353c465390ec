"""Counterfactual neighbours: the text of an edit with the word that it is about exchanged for another.

Where an edit names one town, its neighbour names another: whatever was answered there is to stay. They are
kept as pass samples beside those of the client, and each says of which edit and by which exchange it was made
(counterfactual data: Kaushik et al., ICLR 2020; neighbourhood prompts: Meng et al. 2022, section 3.4). None
is measured or held out. docs/log.md tells what they bring.

Knows texts, and how a version answers them. Does not know recipes or what pass samples are used for.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.answers import predict
from salem.deltas import LayerDelta
from salem.hosting import Network
from salem.records import EditBatch, Hyperparameters, Sample, TextInput
from salem.wordings import NUMBERS, Wording, weights_of, word_weights

DRAWS = 20  # of a word to put in another's place, per neighbour
FILLER = 0.1  # of what the exchanged word tells; what tells less takes the place of nothing
MOST_QUOTED = 60  # characters of a word in a note
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Neighbour:
    """A text near an edit, and where it comes from."""

    text: TextInput
    edit: int  # index of the edit
    word: str  # of the edit
    instead: str

    def answered(self, answer: str) -> Sample:
        """As a pass sample."""
        return Sample(input=self.text.input, text_pair=self.text.text_pair, target=answer)


def with_neighbours(
    network: Network, parent: Sequence[LayerDelta], batch: EditBatch, hyper: Hyperparameters
) -> tuple[EditBatch, tuple[str, ...]]:
    """The batch with neighbours of its edits among its pass samples, answered as they are now; a note."""
    made = neighbours(batch, hyper.neighbours, random.Random(hyper.seed)) if hyper.neighbours else []
    if not made:
        return batch, ()
    answers = predict(network, [each.text for each in made], parent, max_new_tokens=hyper.max_new_tokens)
    kept = [each.answered(now.output) for each, now in zip(made, answers, strict=True) if now.output]
    first = made[0]
    note = (
        f"{len(kept)} counterfactual neighbours of the edits were kept as pass samples, the first with "
        f'"{first.instead[:MOST_QUOTED]}" in place of "{first.word[:MOST_QUOTED]}"'
    )
    return batch.model_copy(update={"pass_samples": (*batch.pass_samples, *kept)}), (note,)


def neighbours(batch: EditBatch, num: int, rng: random.Random) -> list[Neighbour]:
    """Up to `num` neighbours of each edit, none of which is a text of the batch.

    The word that is exchanged is the one that tells most among those that the edit's paraphrases have too; in
    its place comes a word of the same shape that is no filler beside it.
    """
    texts = [*batch.pass_samples, *batch.corrections]
    weights = word_weights(texts, ())
    pool = _by_shape(texts, weights)
    taken = {text.content_hash for text in _texts_of(batch)}
    found: list[Neighbour] = []
    for edit, sample in enumerate(batch.edit_samples):
        told, word = _subject(sample, [text for owner, text in batch.adapt_samples if owner == edit], weights)
        others = [other for tells, other in pool[_shape(word)] if word and tells >= FILLER * told]
        wanted = len(found) + num
        for instead in rng.sample(others, min(DRAWS * num, len(others))):
            made = Neighbour(_with(sample, word, instead), edit, word, instead)
            if len(found) < wanted and made.text.content_hash not in taken and not _alike(word, instead):
                taken.add(made.text.content_hash)
                found.append(made)
    return found


def _subject(sample: Sample, paraphrases: Sequence[Sample], weights: Tensor) -> tuple[float, str]:
    """The word that tells most of those that all paraphrases have, and how much; "" where there is none."""
    shared = [{word.casefold() for word in _WORD.findall(text.input)} for text in paraphrases]
    words = [word for word in _WORD.findall(sample.input) if all(word.casefold() in text for text in shared)]
    return max(_told(words, weights), default=(0.0, ""))


def _by_shape(texts: Sequence[TextInput], weights: Tensor) -> defaultdict[str, list[tuple[float, str]]]:
    """Different words of all texts by their shape, in a fixed order, and how much each tells."""
    found: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    words = sorted({word for text in texts for word in _WORD.findall(text.input)})
    for told, word in _told(words, weights):
        found[_shape(word)].append((told, word))
    return found


def _told(words: Sequence[str], weights: Tensor) -> list[tuple[float, str]]:
    told = weights_of([word.casefold() for word in words], weights).tolist()
    return list(zip(told, words, strict=True))


def _shape(word: str) -> str:
    """Numbers take the place of numbers of that many digits, names that of names."""
    if word.isdigit():
        return "9" * len(word)
    return "".join(("9" if word.isalnum() and not word.isalpha() else "", "A" if word[:1].isupper() else "a"))


def _alike(word: str, instead: str) -> bool:
    """Whether the two are one word to a scope, too."""
    one, other = (Wording.of(TextInput(input=each)) for each in (word, instead))
    return one.exchanged(other, torch.ones(NUMBERS)) == 0


def _with(sample: Sample, word: str, instead: str) -> TextInput:
    def put(text: str) -> str:
        return re.sub(rf"\b{re.escape(word)}\b", lambda _: instead, text)

    pair = put(sample.text_pair) if sample.text_pair else sample.text_pair
    return TextInput(input=put(sample.input), text_pair=pair)


def _texts_of(batch: EditBatch) -> Iterator[TextInput]:
    yield from (*batch.corrections, *batch.pass_samples, *batch.held_out_pass_samples)
    yield from (sample for _, sample in batch.held_out_paraphrases)
