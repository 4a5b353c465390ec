"""Counterfactual neighbors: the text of an edit with the word that it is about exchanged for another.

Where an edit names one town, its neighbor names another: whatever was answered there is to stay. They are
kept as pass samples beside those of the client; each knows of which edit and by which exchange it was made
(counterfactual data: Kaushik et al., ICLR 2020; neighborhood prompts: Meng et al. 2022, section 3.4). None
is measured or held out. docs/log.md tells what they bring.

Knows texts, and how a version answers them. Does not know what pass samples are used for.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

from salem.deltas.terms import LayerDelta
from salem.inference.predict import predict
from salem.messages import quoted
from salem.models.network import Network
from salem.records import EditBatch, Hyperparameters, Recipe, Sample, TextInput
from salem.scope.lexical import WORD_BUCKETS, WordCounts, is_negation, split_words, word_buckets, word_rarity
from worker.dataset.token_limits import prompts_fit

DRAWS = 20  # of a word to put in another's place, per neighbor
FILLER = 0.1  # of what the exchanged word tells; what tells less takes the place of nothing
_WHOLE = re.compile(r"(?<![\w'\N{RIGHT SINGLE QUOTATION MARK}])\w+(?![\w'\N{RIGHT SINGLE QUOTATION MARK}])")


@dataclass(frozen=True)
class Neighbor:
    """A text near an edit, and where it comes from."""

    text: TextInput
    edit: int  # index of the edit
    word: str  # of the edit
    instead: str

    def answered(self, answer: str) -> Sample:
        """As a pass sample."""
        return Sample(input=self.text.input, text_pair=self.text.text_pair, target=answer)


def with_neighbors(
    network: Network, plain: Sequence[LayerDelta], batch: EditBatch, hyper: Hyperparameters
) -> tuple[EditBatch, tuple[str, ...]]:
    """The batch with neighbors of its edits among its pass samples, answered as they are now; a note.

    Entries need none: their scopes mind exchanged words themselves, and are calibrated on what clients ask.

    Args:
        plain: the parent's deltas but those of entries, which prevail whatever is changed below them, and may
            be removed while it stays.
    """
    if not hyper.neighbors or hyper.recipe is Recipe.SCOPED:
        return batch, ()
    made = neighbors(batch, hyper.neighbors, random.Random(hyper.seed))
    spare = hyper.max_new_tokens + 1 if network.task.generates else 0
    made = list(compress(made, prompts_fit(network, [each.text for each in made], spare)))
    answers = predict(network, [each.text for each in made], plain, max_new_tokens=hyper.max_new_tokens)
    kept = [(each, now.output) for each, now in zip(made, answers, strict=True) if now.output]
    if not kept:
        return batch, ("no counterfactual neighbor of the edits could be made",)
    first = kept[0][0]
    note = (
        f"{len(kept)} counterfactual neighbors of the edits were kept as pass samples, the first with "
        f"{quoted(first.instead)} in place of {quoted(first.word)}"
    )
    samples = (*batch.pass_samples, *(each.answered(answer) for each, answer in kept))
    return batch.model_copy(update={"pass_samples": samples}), (note,)


def neighbors(batch: EditBatch, num: int, rng: random.Random) -> list[Neighbor]:
    """Up to `num` neighbors of each edit, none of which is a text of the batch.

    The word that is exchanged is the rarest of those that the edit's paraphrases have too; in its place comes
    a word of the same shape that is no filler beside it.
    """
    texts = [*batch.pass_samples, *batch.corrections]
    rarity = word_rarity(texts).tolist()
    pool = _by_shape(texts, rarity)
    taken = {text.content_hash for text in _texts_of(batch)}
    found: list[Neighbor] = []
    for edit, sample in enumerate(batch.edit_samples):
        rare, word = _subject(sample, [text for owner, text in batch.adapt_samples if owner == edit], rarity)
        others = [other for its, other in pool[_shape(word)] if word and its >= FILLER * rare]
        wanted = len(found) + num
        for instead in rng.sample(others, min(DRAWS * num, len(others))):
            made = Neighbor(_with(sample, word, instead), edit, word, instead)
            if len(found) < wanted and made.text.content_hash not in taken and not _alike(word, instead):
                taken.add(made.text.content_hash)
                found.append(made)
    return found


def _subject(sample: Sample, paraphrases: Sequence[Sample], rarity: Sequence[float]) -> tuple[float, str]:
    """The rarest word that all paraphrases have, and how rare; of equals a name or number, or the longest."""
    shared = [set(split_words(text.input)) for text in paraphrases]
    words = [word for word in _words(sample.input) if all(word.casefold() in text for text in shared)]
    ranked = [(rare, _shape(word) != "a", len(word), word) for rare, word in _ranked(words, rarity)]
    rare, *_, word = max(ranked, default=(0.0, ""))
    return rare, word


def _by_shape(
    texts: Sequence[TextInput], rarity: Sequence[float]
) -> defaultdict[str, list[tuple[float, str]]]:
    """Different words of all texts by their shape, in a fixed order, with their rarity."""
    found: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    words = sorted({word for text in texts for word in _words(text.input)})
    for rare, word in _ranked(words, rarity):
        found[_shape(word)].append((rare, word))
    return found


def _words(text: str) -> list[str]:
    """What a wording takes for one word, as it is written; no negations, no parts of contractions."""
    whole = _WHOLE.findall(text)
    return [
        word for word in whole if split_words(word) == [word.casefold()] and not is_negation(word.casefold())
    ]


def _ranked(words: Sequence[str], rarity: Sequence[float]) -> list[tuple[float, str]]:
    places = word_buckets(word.casefold() for word in words)
    return [(rarity[place], word) for place, word in zip(places, words, strict=True)]


def _shape(word: str) -> str:
    """Numbers take the place of numbers of that many digits, names that of names."""
    if word.isdigit():
        return "9" * len(word)
    return "".join(("9" if word.isalnum() and not word.isalpha() else "", "A" if word[:1].isupper() else "a"))


def _alike(word: str, instead: str) -> bool:
    """Whether the two are one word to a scope, too."""
    one, other = (WordCounts.of(TextInput(input=each)) for each in (word, instead))
    return one.exchanged_weight(other, [1.0] * WORD_BUCKETS) == 0


def _with(sample: Sample, word: str, instead: str) -> TextInput:
    def put(text: str) -> str:
        return re.sub(rf"\b{re.escape(word)}\b", lambda _: instead, text)

    pair = put(sample.text_pair) if sample.text_pair else sample.text_pair
    return TextInput(input=put(sample.input), text_pair=pair)


def _texts_of(batch: EditBatch) -> Iterator[TextInput]:
    yield from (*batch.corrections, *batch.pass_samples, *batch.held_out_pass_samples)
    yield from (sample for _, sample in batch.held_out_paraphrases)
