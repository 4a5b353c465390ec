"""Passages of running text as samples: a beginning and its continuation.

Edits are completions of ten tokens, as in MEND's Wikitext generation (Mitchell et al., ICLR 2022, section 5).
As there, their paraphrases are beginnings that are cut at the front. Does not know models' answers or
methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from salem.models.network import Network
from salem.models.tokens import continuation_ids
from salem.records import Sample

WORDS = 24  # of a passage
BEGINNING = 10  # words of the prompt
COMPLETION_TOKENS = 10
UNKNOWN = "<unk"  # how the corpus writes a rare word; no edit asks for it


def passages(network: Network, text: str, limit: int | None) -> list[Sample]:
    """Consecutive passages of `WORDS` words within lines, without headings and passages that are too long."""
    found: list[Sample] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] in ([], ["="]):
            continue
        for start in range(0, len(words) - WORDS + 1, WORDS):
            piece = words[start : start + WORDS]
            found.append(Sample(input=" ".join(piece[:BEGINNING]), target=" ".join(piece[BEGINNING:])))
    fitting = [sample for sample in found if _num_tokens(network, sample) <= network.max_input_tokens]
    return fitting[:limit]


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """(edits, kept): one third and two thirds of the distinct inputs, in turns."""
    distinct = list({sample.input: sample for sample in samples}.values())
    edited = [sample for place, sample in enumerate(distinct) if place % 3 == 0]
    return edited, [sample for place, sample in enumerate(distinct) if place % 3]


def completions(network: Network, samples: Sequence[Sample]) -> list[Sample]:
    """The same beginnings with only the next `COMPLETION_TOKENS` tokens.

    Leaves out completions with unknown words, and those that the tokenizer does not reproduce.
    """
    found = []
    for sample in samples:
        prompt, following = continuation_ids(network, sample)
        cut = following[:COMPLETION_TOKENS]
        short = sample.model_copy(update={"target": network.tokenizer.decode(cut).strip()})
        whole = short.target and UNKNOWN not in short.target
        if whole and continuation_ids(network, short) == (prompt, [*cut, *following[-1:]]):
            found.append(short)
    return found


def shortened(sample: Sample) -> Sample:
    """The sample without up to half of its first words; its own text seeds the draw."""
    words = sample.input.split()
    gone = random.Random(sample.content_hash).randint(1, max(1, len(words) // 2))
    return sample.model_copy(update={"input": " ".join(words[gone:]) or sample.input})


def _num_tokens(network: Network, sample: Sample) -> int:
    prompt, following = continuation_ids(network, sample)
    return len(prompt) + len(following)
